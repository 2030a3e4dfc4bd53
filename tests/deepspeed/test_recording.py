"""Finding the loss in a model's output, and making calls again with what they were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ff_deepspeed import ambient
from ff_deepspeed.recording import Backward, Call, Forward, Record, follow, leaves

AROUND: Any = object.__new__(ambient.Ambient)


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


def forward(output: Any, *inputs: torch.Tensor) -> Forward:
    event = Forward(lambda engine, *args: output, inputs, {}, (), AROUND)
    event.made(output)
    return event


@pytest.mark.parametrize("wrap", [
    lambda loss: loss, lambda loss: (loss, torch.ones(3)), lambda loss: {"logits": torch.ones(1), "loss": loss},
    lambda loss: [{"deep": (torch.ones(2), loss)}], lambda loss: Output(loss, torch.ones(2)),
])  # fmt: skip
def test_loss_is_found_in_the_output(wrap: Any) -> None:
    loss = torch.ones((), requires_grad=True)
    output = wrap(loss)
    event = forward(output)
    path = event.path_to(loss)
    assert path is not None
    assert follow(output, path) is loss
    assert Record(1, [event]).forward_of(loss) == (event, path)


def test_computed_loss_is_not_found() -> None:
    loss = torch.ones((), requires_grad=True)
    event = forward((loss,))
    found, path = Record(1, [event]).forward_of(loss * 1)
    assert (found, path) == (None, None)
    assert "not an output" in str(Backward(lambda *a: None, found, path, {}, AROUND).obstacle())


def test_outputs_are_not_kept_alive() -> None:
    loss = torch.ones(())
    event = forward({"loss": loss})
    assert len(list(leaves({"loss": loss}))) == 1
    del loss
    assert event.path_to(torch.ones(())) is None


def test_overwritten_input_is_an_obstacle() -> None:
    x = torch.ones(3)
    record = Record(1, [forward(torch.ones(()), x)])
    assert record.obstacle() is None
    x.mul_(2)
    assert "wrote into an input" in str(record.obstacle())


def test_call_is_made_again_with_what_it_was_given() -> None:
    seen = []

    def double(tensor: torch.Tensor, *, out: list[torch.Tensor]) -> None:
        seen.append((tensor.tolist(), out[0].tolist()))
        tensor.mul_(2)
        out[0].copy_(tensor)

    tensor, out = torch.ones(2), [torch.zeros(2)]
    event = Call(double, (tensor,), {"out": out}, AROUND, writes=True)
    double(tensor, out=out)
    event.replay(None)  # of a complete iteration: the script's own results stay as they are
    assert tensor.tolist() == [2, 2]
    event.renew()  # of the interrupted call: its inputs are what they were
    assert (tensor.tolist(), out[0].tolist()) == ([1, 1], [0, 0])
    assert seen == [([1, 1], [0, 0])] * 2
