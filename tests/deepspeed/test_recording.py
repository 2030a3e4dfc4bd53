"""Finding the loss in a model's output, and making calls again with what they were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ff_deepspeed import ambient, switches
from ff_deepspeed.outputs import follow, leaves
from ff_deepspeed.recording import Backward, Call, Forward, Handle, Launch, Record, Settle

AROUND: Any = object.__new__(ambient.Ambient)
AROUND.sizes = {}
SWITCHES: Any = object.__new__(switches.Switches)


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


def forward(output: Any, *inputs: torch.Tensor) -> Forward:
    event = Forward(lambda engine, *args: output, inputs, {}, SWITCHES, AROUND)
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


class Doubling:
    """A model of one weight, and an engine around it that scales a loss as DeepSpeed does."""

    def __init__(self) -> None:
        self.weight = torch.tensor([2.0, 3.0], requires_grad=True)

    def forward(self, _: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.weight * x
        return {"hidden": hidden, "logits": hidden.sin(), "other": self.weight.exp()}

    def backward(self, _: Any, loss: torch.Tensor) -> None:
        (loss / 3).backward()

    def record(self) -> tuple[Record, Forward, dict[str, torch.Tensor]]:
        x = torch.tensor([0.3, 0.7])
        event = Forward(self.forward, (x,), {}, SWITCHES, AROUND)
        output = self.forward(None, x)
        event.made(output)
        return Record(1, [event]), event, output

    def again(self, event: Forward) -> None:
        """A replayed forward: of the same values, and of a graph of its own."""
        event.again = self.forward(None, torch.tensor([0.3, 0.7]))
        self.weight.grad = None


def own_loss(output: dict[str, torch.Tensor]) -> torch.Tensor:
    return (output["logits"].exp() * output["other"]).pow(2).sum()


@pytest.mark.parametrize("interrupted", ["before", "after"])
def test_the_script_s_own_loss_gives_the_same_gradient_again(interrupted: str) -> None:
    """Before the script's part of the graph was run, and after it has been used up."""
    model = Doubling()
    record, _, output = model.record()
    model.backward(None, own_loss(output))
    assert model.weight.grad is not None
    reference = model.weight.grad.clone()
    model.weight.grad = None
    record, event, output = model.record()
    loss = own_loss(output)
    del output
    backward = Backward(model.backward, loss, record, {}, AROUND)
    assert backward.obstacle() is None and backward.fresh()
    if interrupted == "after":
        with backward.watching():
            model.backward(None, loss)
        assert torch.equal(model.weight.grad, reference)
    for _ in range(2):
        model.again(event)
        assert not backward.fresh()
        assert backward.loss().item() == loss.item()
        backward.replay(None)
        assert model.weight.grad is not None
        assert torch.equal(model.weight.grad, reference)


def test_a_loss_that_cannot_be_given_again_is_an_obstacle() -> None:
    model = Doubling()
    record, _, output = model.record()
    direct = output["logits"].sum() + model.weight.sum()
    assert "a parameter that it does not get through" in str(
        Backward(model.backward, direct, record, {}, AROUND).obstacle()
    )
    both = (output["logits"] * output["hidden"]).sum()
    assert "one of which depends on another" in str(Backward(model.backward, both, record, {}, AROUND).obstacle())
    stranger = torch.ones(2, requires_grad=True) * output["logits"].detach()
    assert Backward(model.backward, stranger.sum(), record, {}, AROUND).obstacle() is not None


def test_an_output_that_the_script_has_written_into_gives_its_gradient() -> None:
    model = Doubling()
    record, event, output = model.record()
    output["logits"].mul_(0.5)
    loss = own_loss(output)
    backward = Backward(model.backward, loss, record, {}, AROUND)
    with backward.watching():
        model.backward(None, loss)
    assert model.weight.grad is not None
    reference = model.weight.grad.clone()
    model.again(event)
    backward.replay(None)
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, reference)


class Sent:
    """torch's handle of a receive."""

    def wait(self) -> bool:
        return True


def test_a_receive_that_the_script_waits_for_is_begun_again_into_its_own_tensor() -> None:
    target = torch.zeros(1)

    def receive(tensor: torch.Tensor) -> Sent:
        tensor.add_(7)
        return Sent()

    event = Launch(receive, (target,), {}, AROUND)
    event.begin()
    event.replay(None)  # interrupted: what it had received is gone, and comes again
    assert target.item() == 7
    handle = Handle(event, lambda launch, ask: ask())
    assert handle.wait() and event.settled
    target.fill_(1)
    event.replay(None)  # of a receive that is over
    Settle(event, AROUND).replay(None)
    assert target.item() == 1


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
