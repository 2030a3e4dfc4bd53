"""A redone iteration must be given what the interrupted one was given."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.errors import DifferenceError
from ff_core.state import inputs as inputs_module
from ff_core.state.inputs import BYTES, Inputs
from tests.remedies import SHOWN


def batch(seed: int, size: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(size, 3, generator=generator), "y": [torch.arange(size), np.arange(3.0)], "n": seed}


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.fixture
def notes() -> memoryview:
    return memoryview(bytearray(BYTES))


def replacement(notes: memoryview) -> Inputs:
    """Another process with the same memory."""
    inputs = Inputs(2, notes, SHOWN)
    inputs.take_over()
    return inputs


def train(inputs: Inputs, iteration: int, *batches: Any) -> None:
    seed()
    for values in batches:
        inputs.given(iteration, values)


def test_the_same_is_accepted(notes: memoryview) -> None:
    train(Inputs(2, notes, SHOWN), 7, batch(1), batch(2))
    inputs = replacement(notes)
    train(inputs, 7, batch(1), batch(2))
    inputs.check(7)
    train(inputs, 8, batch(9))
    inputs.check(8)


CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "content": (lambda: batch(2), "the contents"),
    "shape": (lambda: batch(1, 6), "the shapes or types and the contents"),
    "plain value": (lambda: {**batch(1), "n": 4}, "the contents"),
    "dtype": (lambda: {**batch(1), "x": batch(1)["x"].double()}, "the shapes or types"),
    "order": (lambda: dict(reversed(batch(1).items())), "the contents"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_named(notes: memoryview, name: str) -> None:
    change, words = CHANGES[name]
    train(Inputs(2, notes, SHOWN), 7, batch(1))
    inputs = replacement(notes)
    train(inputs, 7, change())
    with pytest.raises(DifferenceError, match=rf"rank 2 .* repeat iteration 7 .* {words}.*from <batches>, .*: <save>"):
        inputs.check(7)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_random_state_at_the_begin(notes: memoryview, draw: Callable[[], Any]) -> None:
    train(Inputs(2, notes, SHOWN), 7, batch(1))
    inputs = replacement(notes)
    seed()
    draw()
    inputs.given(7, batch(1))
    with pytest.raises(DifferenceError, match="the random number generators' state at its begin of what"):
        inputs.check(7)


def test_only_as_far_as_the_first_attempt_came(notes: memoryview) -> None:
    train(Inputs(2, notes, SHOWN), 7, batch(1))
    inputs = replacement(notes)
    train(inputs, 7, batch(1), batch(5))
    inputs.check(7)
    other = replacement(notes)
    train(other, 7, batch(5), batch(1))
    with pytest.raises(DifferenceError, match="repeat iteration 7"):
        other.check(7)


def test_fewer_micro_batches_than_before(notes: memoryview) -> None:
    train(Inputs(2, notes, SHOWN), 7, batch(1), batch(2))
    inputs = replacement(notes)
    train(inputs, 7, batch(1))
    with pytest.raises(DifferenceError, match=r"but the number of what .*first 2 of its micro-batches"):
        inputs.check(7)


def test_a_survivor_is_checked_too(notes: memoryview) -> None:
    inputs = Inputs(0, notes, SHOWN)
    train(inputs, 3, batch(1))
    train(inputs, 4, batch(2))
    inputs.again(2)
    train(inputs, 3, batch(1))
    inputs.check(3)
    train(inputs, 4, batch(3))
    with pytest.raises(DifferenceError, match="rank 0 was to repeat iteration 4"):
        inputs.check(4)


def test_two_failures_in_one_iteration(notes: memoryview) -> None:
    """The longest attempt counts: the second one died earlier."""
    inputs = Inputs(0, notes, SHOWN)
    train(inputs, 3, batch(1), batch(2))
    inputs.again(2)
    train(inputs, 3, batch(1))
    inputs.again(2)
    train(inputs, 3, batch(1), batch(4))
    with pytest.raises(DifferenceError, match="first 2 of its micro-batches"):
        inputs.check(3)


def test_large_tensors_are_sampled(notes: memoryview) -> None:
    large = torch.arange(1_000_000)
    train(Inputs(2, notes, SHOWN), 1, large)
    inputs = replacement(notes)
    train(inputs, 1, torch.arange(1_000_000))
    inputs.check(1)
    other = replacement(notes)
    train(other, 1, torch.arange(1, 1_000_001))
    with pytest.raises(DifferenceError, match="the contents"):
        other.check(1)


def test_an_input_that_is_changed_afterwards(notes: memoryview) -> None:
    """In-place changes by the script after the call are not the engine's input."""
    x = torch.zeros(4)
    train(Inputs(2, notes, SHOWN), 1, x)
    inputs = replacement(notes)
    train(inputs, 1, x)
    x.fill_(3)
    inputs.check(1)


def test_old_notes_are_of_no_use(notes: memoryview) -> None:
    inputs = Inputs(2, notes, SHOWN)
    for iteration in range(80):
        train(inputs, iteration, batch(iteration))
    inputs = replacement(notes)
    assert sorted(inputs._expected) == list(range(29, 80))


def losing(inputs: Inputs, iteration: int, *losses: float) -> None:
    seed()
    for value in losses:
        inputs.given(iteration, batch(1))
        inputs.loss(iteration, torch.tensor(value))


@pytest.mark.parametrize("process", ["survivor", "replacement"])
@pytest.mark.parametrize("again", [(1.5, 2.0), (1.5, 2.0, 3.0), (float("nan"), 2.0)])
def test_the_same_losses_are_accepted(notes: memoryview, process: str, again: tuple[float, ...]) -> None:
    inputs = Inputs(2, notes, SHOWN)
    losing(inputs, 7, *again[:2])
    inputs = replacement(notes) if process == "replacement" else inputs
    inputs.again(6)
    losing(inputs, 7, *again)
    inputs.check(7)


@pytest.mark.parametrize("process", ["survivor", "replacement"])
@pytest.mark.parametrize("again", [(1.5, 2.0000002), (1.6, 2.0), (float("nan"), 2.0)])
def test_other_losses_are_refused(notes: memoryview, process: str, again: tuple[float, ...]) -> None:
    """The engine is given the same, but the script weighs its loss otherwise."""
    inputs = Inputs(2, notes, SHOWN)
    losing(inputs, 7, 1.5, 2.0)
    inputs = replacement(notes) if process == "replacement" else inputs
    inputs.again(6)
    losing(inputs, 7, *again)
    with pytest.raises(DifferenceError, match=r"rank 2 .* iteration 7 .* loss differs: .* 3\.5 .*<counter>"):
        inputs.check(7)
    with pytest.raises(DifferenceError, match=r"goes on without the earlier entries of window: .* Register them"):
        inputs.check(7, ["window"])


class Late:
    """What a device has not computed yet: an aborted collective lets it go on with whatever lies in memory."""

    there = False

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def arrived(self) -> bool:
        return Late.there

    def host(self) -> torch.Tensor:
        return self.value


@pytest.mark.parametrize("in_time", [True, False])
def test_what_a_device_computes_after_a_halt_is_not_noted(
    notes: memoryview, monkeypatch: pytest.MonkeyPatch, in_time: bool
) -> None:
    inputs = Inputs(2, notes, SHOWN)
    losing(inputs, 7, 1.5)
    with monkeypatch.context() as patched:
        patched.setattr(inputs_module, "Arriving", Late)
        patched.setattr(Late, "there", False)
        inputs.given(7, batch(1))
        inputs.loss(7, torch.tensor(2.0))
        inputs._losses[0].whole = False  # as of a device
        Late.there = in_time
        inputs.halting(3)
        Late.there = True
        losing(inputs, 7, 3.0)  # it has not heard of the halt
    inputs.recovered(3)
    for process in (inputs, replacement(notes)):
        process.again(6)
        assert process._expected[7][:2] == ((3, 3) if in_time else (2, 1))
        losing(process, 7, 1.5, 2.0 if in_time else 9.0, 3.0)
        process.check(7)
    losing(inputs, 8, 1.0)
    inputs.again(7)
    assert inputs._expected[8][:2] == (1, 1)


def test_kernels_may_add_up_in_another_order() -> None:
    assert inputs_module._alike(1.0, 1.00001, inputs_module._NEARLY)
    assert not inputs_module._alike(1.0, 1.001, inputs_module._NEARLY)
