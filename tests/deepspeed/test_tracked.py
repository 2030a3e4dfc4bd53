"""Iterators that a script made before its loop are in every version, also those that have given nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ff_core.state import spaces, variables
from ff_core.state.iterators import OfIterators
from ff_deepspeed.tracked import Tracked


@pytest.fixture(autouse=True)
def of_iterators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "more", [*spaces.more, OfIterators])


def tracked(trains: bool = False) -> Tracked:
    loader = [1, 2, 3]

    def make() -> Iterator[int]:
        return iter(loader)

    made = Tracked(0, loader, make, lambda it: it.source.next(), lambda it: trains)
    made.source.begin()
    return made


def places_in(mine: variables.Variables) -> list[Any]:
    entries = [entry[0] for entry in mine.save()["changed"].values() if entry is not None]
    return [taken[1]["consumed"] for taken in entries if taken[0] == "placed"]


@pytest.mark.parametrize("in_a_variable", [True, False])
def test_one_that_has_given_nothing_yet_is_saved(in_a_variable: bool) -> None:
    """A replacement has not begun it, and would begin it from the random states of when it is first asked."""
    checks = tracked() if in_a_variable else zip(tracked(), tracked(), strict=True)
    mine = variables.Variables()
    mine.begin()
    assert places_in(mine) == [0]
    next(checks)
    assert places_in(mine) == [1]


def test_what_training_is_driven_by_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = tracked(trains=True)
    mine = variables.Variables()
    mine.begin()
    assert places_in(mine) == []
    next(feed)
    assert places_in(mine) == []
