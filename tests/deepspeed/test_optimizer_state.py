"""Moments made ahead, step counts, and DeepSpeedCPUAdam's hidden state."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

from ff_core.state.optimizer_tensors import trainable
from ff_deepspeed import cpu_adam, moments
from tests.deepspeed.small_model import Counting


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
        for p in trainable(optimizer)
        for t in (p.data, *moments.of(optimizer).tensors(p).values())
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"foreach": True}])
def test_moments_made_ahead_are_what_the_first_step_makes(options: dict[str, Any]) -> None:
    ahead, lazy = (torch.optim.AdamW(parameters(), lr=0.1, **options) for _ in range(2))
    moments.of(ahead).create()
    state = ahead.state[trainable(ahead)[0]]
    assert float(state["step"]) == 0
    gradients(0, trainable(lazy))
    lazy.step()
    moments.of(lazy).create()
    reference = lazy.state[trainable(lazy)[0]]
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in reference.items()}
    gradients(0, trainable(ahead))
    ahead.step()
    assert bits(ahead) == bits(lazy)
    assert [row["numbers"]["step"] for row in moments.of(ahead).save()] == [1.0, 1.0]


def test_existing_state_is_left_alone() -> None:
    optimizer = torch.optim.Adam(parameters())
    gradients(0, trainable(optimizer))
    optimizer.step()
    moments.of(optimizer).create()
    before = copy.deepcopy(bits(optimizer))
    moments.of(optimizer).create()
    assert bits(optimizer) == before
    saved = [{"numbers": {"step": step}, "late": []} for step in (7.0, 8.0)]
    moments.of(optimizer).load(saved)
    assert moments.of(optimizer).save() == saved


def make_cpu_adam(given: list[torch.nn.Parameter], **options: Any) -> Any:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    optimizer = DeepSpeedCPUAdam(given, lr=0.1, **options)
    cpu_adam.follow(optimizer)
    moments.of(optimizer).create()
    return optimizer


def run(optimizer: Any, steps: range, betas: Any = None) -> None:
    for step in steps:
        if betas is not None:
            optimizer.param_groups[0]["betas"] = betas(step)
        gradients(step, trainable(optimizer))
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
    values = [torch.tensor(values) for values in bits(optimizer)]
    saved = (cpu_adam.save(optimizer), moments.of(optimizer).save(), values)
    run(optimizer, range(21, 31), betas)
    expected = bits(optimizer)

    other = make_cpu_adam(parameters()[:count]) if fresh else optimizer
    cpu_adam.restore(other, saved[0])
    moments.of(other).load(saved[1])
    live = [t for p in trainable(other) for t in (p.data, *moments.of(other).tensors(p).values())]
    for tensor, values in zip(live, saved[2], strict=True):
        tensor.copy_(values)
    run(other, range(21, 31), betas)
    assert bits(other) == expected


def test_without_its_hidden_state_going_back_is_not_exact() -> None:
    """The test above can tell."""
    optimizer = make_cpu_adam(parameters()[:1])
    run(optimizer, range(1, 21))
    steps, values = moments.of(optimizer).save(), [torch.tensor(v) for v in bits(optimizer)]
    run(optimizer, range(21, 31))
    expected = bits(optimizer)
    moments.of(optimizer).load(steps)
    (p,) = trainable(optimizer)
    for tensor, value in zip((p.data, *moments.of(optimizer).tensors(p).values()), values, strict=True):
        tensor.copy_(value)
    run(optimizer, range(21, 31))
    assert bits(optimizer) != expected


class Replacing(torch.optim.Optimizer):
    """Makes its tensor anew in every step."""

    def __init__(self, given: Any) -> None:
        super().__init__(given, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            self.state[p]["mean"] = self.state[p].get("mean", torch.zeros_like(p)) * 0.9 + p.grad
            p.data.sub_(self.state[p]["mean"], alpha=0.1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Counting(parameters(), lr=0.1), "keeps state elsewhere"),
        (lambda: Replacing(parameters()), "makes a new tensor for its state 'mean'"),
        (lambda: torch.optim.LBFGS(parameters()[:1]), r"its step\(\) cannot be tried"),
    ],
)
def test_what_the_rule_cannot_see_is_found_before_training(make: Any, reason: str) -> None:
    (found,) = moments.examine(make()).obstacles
    assert re.search(reason, found)


SEEN: dict[str, Any] = {
    "AdamW": lambda p: torch.optim.AdamW(p),
    "Adam amsgrad foreach": lambda p: torch.optim.Adam(p, amsgrad=True, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
}


@pytest.mark.parametrize("name", SEEN)
def test_optimizers_of_torch_pass_the_trial_and_are_not_changed_by_it(name: str) -> None:
    optimizer = SEEN[name](parameters())
    values = [p.tolist() for p in trainable(optimizer)]
    random = torch.get_rng_state()
    before = copy.deepcopy(optimizer.state_dict())
    found = moments.examine(optimizer)
    assert found.obstacles == ()
    assert list(found.late) == (["momentum_buffer"] if name == "SGD momentum" else [])
    assert [p.tolist() for p in trainable(optimizer)] == values
    assert str(optimizer.state_dict()) == str(before)
    assert torch.equal(torch.get_rng_state(), random)
