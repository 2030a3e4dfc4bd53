"""The loss of a micro-batch is noted where Megatron goes backward from it, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_megatron import micro_batches

LOSS, ACTIVATION, GRADIENT = torch.ones(()), torch.ones(2, 3), torch.ones(2, 3)


def backward_step(input_tensor: Any, output_tensor: Any, output_tensor_grad: Any, model_type: Any, config: Any) -> str:
    return "Megatron's own"


@pytest.mark.parametrize(
    ("output", "gradient", "noted"),
    [
        (LOSS, None, [LOSS]),
        ([LOSS], [None], [LOSS]),
        ([ACTIVATION], [GRADIENT], []),
        (torch.ones(1), GRADIENT, []),  # a stage's output that Megatron has given back already
        ([None], [None], []),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_last_stage_notes_its_loss(output: Any, gradient: Any, noted: list[Any], training: bool) -> None:
    losses: list[Any] = []
    points: list[str] = []
    session = SimpleNamespace(training=training, loss=losses.append, inject=points.append)
    found: Any = SimpleNamespace(session=session)
    assert micro_batches._backward_step(found, backward_step, [None], output, output_tensor_grad=gradient,
                                model_type=None, config=None) == "Megatron's own"  # fmt: skip
    assert losses == (noted if training else [])
    assert points == (["backward"] if training else [])


def test_a_loss_whose_memory_the_schedule_gives_back_before_the_backward() -> None:
    """With pipeline stages and deallocate_pipeline_outputs, as Megatron's arguments have it: the last stage's too."""
    from megatron.core.pipeline_parallel.schedules import deallocate_output_tensor

    losses: list[float] = []
    session = SimpleNamespace(training=True, loss=lambda value: losses.append(float(value)), inject=lambda point: None)
    taken: list[Any] = []
    found: Any = SimpleNamespace(session=session, feeds=taken.append)
    loss = (torch.full((), 3.5, requires_grad=True) * 1).sum()
    outputs, tokens = micro_batches._forward_step(found, lambda data_iterator: ([loss], 7), "data")
    assert outputs[0] is loss and tokens == 7 and taken == ["data"]
    deallocate_output_tensor(loss, True)
    loss.data.fill_(-892.0)  # whatever lies there
    micro_batches._backward_step(found, backward_step, [None], [loss], [None], None, None)
    assert losses == [3.5]
