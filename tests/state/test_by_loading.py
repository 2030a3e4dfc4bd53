"""What loading an item changes among a script's variables goes on with the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ff_core.state import codec, covered, spaces
from ff_core.state.variables import Variables

CACHE: dict[int, list[int]] = {}
TALLY: list[int] = []


class Items:
    """A data set in no variable of the script."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def load(self, number: int) -> int:
        self.seen.append(number)
        TALLY.append(number)
        return CACHE.setdefault(number % 3, [number])[0]


class Script:
    """Loads an item an iteration; counts by itself, too."""

    def __init__(self, *, again: bool) -> None:
        CACHE.clear()
        TALLY.clear()
        self.variables, self.count = Variables(), [0]
        self.variables.loads({"items": Items()}, again=again)

    @property
    def items(self) -> Items:
        items: Items = self.variables._loaders[0]["items"]
        return items

    def iteration(self, number: int) -> None:
        with self.variables.loading():
            self.items.load(number)
        self.count[0] += 1


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(covered, "_trainers", [])
    monkeypatch.setattr(spaces, "_loaders", [])
    yield


def sent(saved: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = codec.decode(codec.encode(saved))
    return decoded


def run(script: Script, numbers: range) -> dict[str, Any]:
    saved: dict[str, Any] = {}
    for number in numbers:
        script.iteration(number)
        saved = sent(script.variables.save())
    return saved


@pytest.mark.parametrize("again", [True, False])
def test_in_a_survivor_it_stays_as_its_items_were_loaded(again: bool) -> None:
    script = Script(again=again)
    script.variables.begin()
    saved = run(script, range(3))
    script.iteration(3)  # void
    assert script.variables.load(saved, repeats=True) == ([], [])
    assert script.count == [3]
    assert TALLY == script.items.seen == [0, 1, 2, 3]  # handed out again, not loaded again


def test_a_replacement_gets_it_where_it_loads_nothing_again() -> None:
    dead = Script(again=False)
    dead.variables.begin()
    saved = run(dead, range(3))
    mine = Script(again=False)
    spaces._loaders[:] = mine.variables._loaders
    mine.variables.begin()
    assert mine.variables.load(saved, repeats=True) == ([], [])
    assert {number: list(items) for number, items in CACHE.items()} == {0: [0], 1: [1], 2: [2]}
    assert TALLY == mine.items.seen == [0, 1, 2]


def test_a_replacement_that_has_loaded_it_again_keeps_it() -> None:
    dead = Script(again=True)
    dead.variables.begin()
    saved = run(dead, range(3))
    mine = Script(again=True)
    mine.variables.begin()
    for number in range(3):
        mine.items.load(number)
    assert mine.variables.load(saved, repeats=True) == ([], [])
    assert TALLY == [0, 1, 2] and "TALLY" not in " ".join(saved["changed"])


@pytest.mark.parametrize("before", [True, False])
def test_what_the_loop_changes_too_is_named(before: bool) -> None:
    """before: the item is loaded."""
    script = Script(again=True)
    script.variables.begin()
    for number in range(3):
        TALLY.extend([100] if before else [])
        script.iteration(number)
        TALLY.extend([100] if number == 2 and not before else [])
        saved = sent(script.variables.save())
    script.iteration(4)
    (lost,), _ = script.variables.load(saved, repeats=True)
    assert lost.startswith(f"{__name__}:TALLY (a list of ")
