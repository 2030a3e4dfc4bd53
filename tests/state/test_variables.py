"""Variables of a script that a replacement begins anew."""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ff_core.state import codec, registered, variables
from ff_core.state.variables import Variables

COUNT = 0  # a global name of the script


class Stopper:
    """An object of the script's own class."""

    def __init__(self) -> None:
        self.best, self.patience = float("inf"), 0


def script(steps: int, look: Callable[[int], Any]) -> Any:
    """A training loop; look(n) is called when it is in iteration n, 0: before the loop."""
    global COUNT
    COUNT = 0
    stopper, losses, window, noise = Stopper(), [], deque(maxlen=2), random.Random(1)  # type: ignore[var-annotated]
    average, lookup, rate, name = nn.Linear(2, 2), {"mean": torch.zeros(3)}, 0.1, "tiny"
    found = look(0)
    for number in range(1, steps + 1):
        loss = torch.full((2, 2), float(number))
        stopper.best, stopper.patience = min(stopper.best, 1 / number), number
        losses.append(float(loss.sum()))
        window.append(number)
        noise.random()
        COUNT += 1
        with torch.no_grad():
            average.weight.add_(1)
            lookup["mean"] += 1
        found = look(number)
    assert rate and name
    return found


ALL = {"stopper.best", "stopper.patience", "losses", "window", "noise", "average", "lookup", "COUNT"}


def named(words: list[str]) -> set[str]:
    return {word.split(" ")[0].removeprefix("script().").rpartition("test_variables.")[2] for word in words}


def changed_in(watched: Variables, steps: int) -> dict[str, Any]:
    """save() behind a loop of `steps` iterations."""

    def look(number: int) -> Any:
        if number == 0:
            watched.begin()
        return watched.save()

    saved: dict[str, Any] = codec.decode(codec.encode(script(steps, look)))
    return saved


def differing(watched: Variables, saved: dict[str, Any]) -> list[str]:
    """What a replacement is told before its loop."""

    def look(number: int) -> list[str]:
        watched.begin()
        return watched.differing(saved)

    return of_loop(script(0, look))


def of_loop(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith("look()")]  # the test's own


def test_a_replacement_is_told_what_it_begins_anew() -> None:
    told = differing(Variables(set), changed_in(Variables(set), 3))
    assert named(told) == ALL
    assert "script().stopper.patience (0, was 3)" in told and "script().average (Linear)" in told


def test_nothing_is_told_of_what_is_the_same() -> None:
    assert differing(Variables(set), changed_in(Variables(set), 0)) == []


def test_a_survivor_is_told_what_an_iteration_changes_twice() -> None:
    mine, saved = Variables(set), {}
    told: dict[int, list[str]] = {}

    def look(number: int) -> None:
        if number == 0:
            mine.begin()
        if number == 2:
            saved.update(mine.save())
        if number >= 2:
            told[number] = of_loop(mine.differing(saved))

    script(3, look)
    assert told[2] == [] and named(told[3]) == ALL


def test_what_is_saved_otherwise_is_left_out() -> None:
    covered: set[int] = set()
    mine = Variables(lambda: covered)

    def look(number: int) -> list[str]:
        if number == 0:
            mine.begin()
        with variables._running() as spaces:
            covered.update(variables.reached([spaces["script()."]["average"]]))
        return mine.written()

    assert named(script(2, look)) == {"lookup"}


def test_models_and_tensors_that_are_written_are_told_at_once() -> None:
    mine = Variables(set)
    assert named(script(2, lambda number: mine.written() if number else mine.begin())) == {"average", "lookup"}


def test_a_registered_object_covers_what_it_has() -> None:
    average, other = nn.Linear(2, 2), nn.Linear(2, 2)

    class Saver:
        def __init__(self) -> None:
            self.models = {"average": average}

        def state_dict(self) -> Any: ...

        def load_state_dict(self, state: Any) -> None: ...

    registered.register_state("average", Saver())
    try:
        ids = variables._saved_anyway()
    finally:
        registered.unregister_state("average")
    assert id(average.weight) in ids and id(other.weight) not in ids


def test_a_function_s_loss_is_not_kept_alive() -> None:
    kept = []

    def look(number: int) -> None:
        if number == 0:
            mine.begin()
        mine.save()
        if number == 2:
            kept.append(weakref.ref(trained))

    def train() -> None:
        nonlocal trained
        loss = torch.ones(3)
        trained = loss
        look(0)
        look(2)
        trained = None
        del loss
        assert kept[0]() is None

    trained: Any = None
    mine = Variables(set)
    train()
