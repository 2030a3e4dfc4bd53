"""The count of an enumerate() goes where it has to be, from within the iterator that it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ff_core.state import counting


class Asked:
    """An iterator that calls `look(number)` when item `number` is asked for."""

    def __init__(self, look: Callable[[Any, int], None], items: int = 5) -> None:
        self._look, self._items, self._number = look, items, -1

    def __iter__(self) -> Asked:
        return self

    def __next__(self) -> int:
        self._number += 1
        if self._number == self._items:
            raise StopIteration
        self._look(self, self._number)
        return self._number


def through(iterator: Any) -> Iterator[Any]:
    """A progress bar."""
    yield from iterator


@pytest.mark.parametrize("wrap", [lambda it: it, through], ids=["directly", "through a generator"])
def test_an_item_that_is_handed_out_again_has_its_number_again(wrap: Any) -> None:
    def look(iterator: Any, number: int) -> None:
        if number == 3:
            counting.move(iterator, -1)

    assert [count for count, _ in enumerate(wrap(Asked(look)))] == [0, 1, 2, 2, 3]


def test_a_replacement_goes_on_counting() -> None:
    seen: list[list[int]] = []

    def look(iterator: Any, number: int) -> None:
        seen.append(counting.counts(iterator))
        if number == 0:
            counting.set_counts(iterator, [17])

    other = enumerate(range(3))
    next(other)
    assert [count for count, _ in enumerate(Asked(look, 2), start=10)] == [17, 18]
    assert seen == [[10], [18]] and next(other) == (1, 1), "another enumerate is left alone"


def test_nothing_counts() -> None:
    looked: list[int] = []

    def look(iterator: Any, number: int) -> None:
        counting.move(iterator, 5)
        looked.append(len(counting.counts(iterator)))

    assert list(Asked(look, 2)) == [0, 1] and looked == [0, 0]


def test_a_count_that_lies_elsewhere_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_PLACE", counting._PLACE + 8)

    def look(iterator: Any, number: int) -> None:
        with pytest.raises(counting.Unmovable):
            counting.move(iterator, 3)

    assert [count for count, _ in enumerate(Asked(look, 2))] == [0, 1]
