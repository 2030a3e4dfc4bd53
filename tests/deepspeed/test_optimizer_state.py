"""Moments made ahead, step counts, and DeepSpeedCPUAdam's hidden state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ff_deepspeed import cpu_adam, moments


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (40, 9)]


def gradients(step: int, given: list[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in given:
        p.grad = torch.randn(p.shape, generator=generator)


def bits(optimizer: torch.optim.Optimizer) -> list[list[float]]:
    return [
        t.tolist()
        for p in moments.trainable(optimizer)
        for t in (p.data, *moments.tensors(optimizer, p).values())
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"foreach": True}])
def test_moments_made_ahead_are_what_the_first_step_makes(options: dict[str, Any]) -> None:
    ahead, lazy = (torch.optim.AdamW(parameters(), lr=0.1, **options) for _ in range(2))
    moments.create(ahead)
    state = ahead.state[moments.trainable(ahead)[0]]
    assert float(state["step"]) == 0
    gradients(0, moments.trainable(lazy))
    lazy.step()
    reference = lazy.state[moments.trainable(lazy)[0]]
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in reference.items()}
    gradients(0, moments.trainable(ahead))
    ahead.step()
    assert bits(ahead) == bits(lazy)
    assert list(moments.steps(ahead)) == [1.0, 1.0]


def test_existing_state_is_left_alone() -> None:
    optimizer = torch.optim.Adam(parameters())
    gradients(0, moments.trainable(optimizer))
    optimizer.step()
    before = copy.deepcopy(bits(optimizer))
    moments.create(optimizer)
    assert bits(optimizer) == before
    moments.set_steps(optimizer, torch.tensor([7.0, 8.0]))
    assert list(moments.steps(optimizer)) == [7.0, 8.0]


def make_cpu_adam(given: list[torch.nn.Parameter], **options: Any) -> Any:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    optimizer = DeepSpeedCPUAdam(given, lr=0.1, **options)
    cpu_adam.follow(optimizer)
    moments.create(optimizer)
    return optimizer


def run(optimizer: Any, steps: range, betas: Any = None) -> None:
    for step in steps:
        if betas is not None:
            optimizer.param_groups[0]["betas"] = betas(step)
        gradients(step, moments.trainable(optimizer))
        optimizer.step()


def change_once(step: int) -> tuple[float, float]:
    return (0.9 if step < 6 else 0.8, 0.999)


def change_always(step: int) -> tuple[float, float]:
    return (0.9, 0.9 + step / 1000)


@pytest.mark.parametrize(("count", "betas"), [(2, None), (1, None), (1, change_once), (1, change_always)])
@pytest.mark.parametrize("fresh", [False, True], ids=["survivor", "newcomer"])
def test_going_back_is_exact_with_cpu_adam(count: int, betas: Any, fresh: bool) -> None:
    optimizer = make_cpu_adam(parameters()[:count])
    run(optimizer, range(1, 21), betas)
    saved = (cpu_adam.save(optimizer), moments.steps(optimizer), [torch.tensor(values) for values in bits(optimizer)])
    run(optimizer, range(21, 31), betas)
    expected = bits(optimizer)

    other = make_cpu_adam(parameters()[:count]) if fresh else optimizer
    cpu_adam.restore(other, saved[0])
    moments.set_steps(other, saved[1])
    live = [t for p in moments.trainable(other) for t in (p.data, *moments.tensors(other, p).values())]
    for tensor, values in zip(live, saved[2], strict=True):
        tensor.copy_(values)
    run(other, range(21, 31), betas)
    assert bits(other) == expected


def test_without_its_hidden_state_going_back_is_not_exact() -> None:
    """The test above can tell."""
    optimizer = make_cpu_adam(parameters()[:1])
    run(optimizer, range(1, 21))
    steps, values = moments.steps(optimizer), [torch.tensor(v) for v in bits(optimizer)]
    run(optimizer, range(21, 31))
    expected = bits(optimizer)
    moments.set_steps(optimizer, steps)
    (p,) = moments.trainable(optimizer)
    for tensor, value in zip((p.data, *moments.tensors(optimizer, p).values()), values, strict=True):
        tensor.copy_(value)
    run(optimizer, range(21, 31))
    assert bits(optimizer) != expected
