"""Where a script is when it asks for a batch: loops that are in no variable, and numbers of its generators."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from ff_core.state import around, frames

SCRIPT = """
import itertools

def epochs(call, first):
    seen = []
    for epoch in range(first, 5):
        for lr in [0.1, 0.2, 0.3]:
            seen.append((epoch, lr, call()))
    return seen

def counted(call, first):
    seen = []
    for epoch in itertools.count(first):
        for number, lr in enumerate([0.1, 0.2]):
            seen.append((epoch, number, lr, call()))
        if epoch >= 4:
            return seen

def forever(call, epoch):
    while True:
        for _ in range(3):
            yield epoch, call()
        epoch += 1

def through(call, first):
    return [item for item, _ in zip(forever(call, first), range(15 - 3 * first))]
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("a_script")
    exec(compile(SCRIPT, "/home/user/a_script.py", "exec"), module.__dict__)
    own = around.frames.of_script
    monkeypatch.setattr(frames, "of_script", lambda: (f for f in own() if f.f_code.co_filename.endswith("a_script.py")))
    return module


def run(function: Callable[..., Any], die_at: int, first: int = 0) -> tuple[list[Any], list[Any]]:
    """What one sees that dies in call `die_at`, and one that begins anew there, which goes to its place at once."""
    calls, places = itertools.count(), list[Any]()

    def call() -> int:
        number = next(calls)
        if number == die_at:
            places[:] = around.places()
        return number

    whole = function(call, 0)
    again = itertools.count(die_at)

    def call_again() -> int:
        number = next(again)
        if number == die_at:
            around.go_to(places)
        return number

    return whole[die_at:], function(call_again, first)


@pytest.mark.parametrize(
    ("name", "die_at"), [("epochs", 0), ("epochs", 1), ("epochs", 4), ("epochs", 9), ("counted", 1), ("counted", 4)]
)
def test_a_replacement_comes_to_the_same_place(script: ModuleType, name: str, die_at: int) -> None:
    whole, again = run(getattr(script, name), die_at)
    assert len(again) == len(whole)
    assert [item[-1] for item in again] == [item[-1] for item in whole]
    assert again[3:] == whole[3:], "the variables of the loops that are under way are put back otherwise"


def test_a_loop_that_the_script_has_begun_where_it_was_is_left_alone(script: ModuleType) -> None:
    whole, again = run(script.epochs, 6, first=2)
    assert again == whole


def test_a_loop_that_is_further_is_left_alone(script: ModuleType) -> None:
    whole, again = run(script.epochs, 4, first=3)
    assert len(again) == 5 < len(whole)


def test_numbers_of_a_running_generator(script: ModuleType) -> None:
    calls: Iterator[int] = itertools.count()
    places: list[Any] = []

    def call() -> int:
        number = next(calls)
        if number == 7:
            places[:] = around.places()
        return number

    items = script.forever(call, 0)
    whole = [next(items) for _ in range(12)]
    again = itertools.count(7)

    def call_again() -> int:
        number = next(again)
        if number == 7:
            around.go_to(places)
        return number

    items = script.forever(call_again, 0)
    assert [next(items) for _ in range(5)][1:] == whole[8:]
