"""The count of an enumerate() goes where it has to be, from within the iterator that it asks."""

from __future__ import annotations

import itertools
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


def items(look: Callable[[Any, int], None], wrap: Callable[[Any], Any], items: int = 6) -> list[Any]:
    return list(wrap(Asked(look, items)))


WRAPS: dict[str, Callable[[Any], Any]] = {
    "islice": lambda it: itertools.islice(it, 4),
    "zip with a range": lambda it: zip(it, range(4)),  # noqa: B905
    "zip with a list": lambda it: zip(it, [5, 6, 7, 8], itertools.count()),
    "enumerate of a zip": lambda it: enumerate(zip(it, "abcd")),  # noqa: B905
    "enumerate of a map": lambda it: enumerate(map(abs, it)),
    "islice of a generator": lambda it: itertools.islice(through(it), 4),
}


@pytest.mark.parametrize("name", WRAPS)
def test_what_is_around_a_replacements_iterator_goes_on(name: str) -> None:
    """Two items were taken before."""
    starts: list[list[int]] = []

    def note(iterator: Any, number: int) -> None:
        if number == 0:
            starts.append(counting.counts(iterator))

    def go(iterator: Any, number: int) -> None:
        if number == 0:
            iterator._number = 2
            counting.set_counts(iterator, [start + 2 for start in starts[0]])

    def fixed(iterator: Any, number: int) -> None:
        pass

    whole = items(note, WRAPS[name])
    assert items(fixed, WRAPS[name]) == whole
    later = items(go, WRAPS[name])
    # The iterator itself gives the number that it was asked for; what is around it has gone on.
    assert len(later) == len(whole) - 2
    if name != "islice" and "islice" not in name:
        assert [part[1:] if "enumerate" not in name else part[0] for part in later[1:]] == [
            part[1:] if "enumerate" not in name else part[0] for part in whole[3:]
        ]


def test_what_was_taken_before_the_iterator_cannot_be_exchanged() -> None:
    def look(iterator: Any, number: int) -> None:
        counting.move(iterator, 0)
        if number == 1:
            with pytest.raises(counting.Unmovable, match="range_iterator"):
                counting.move(iterator, 1)

    assert [n for n, _ in zip(range(3), Asked(look))] == [0, 1, 2]  # noqa: B905


def test_a_survivor_takes_an_item_again() -> None:
    def look(iterator: Any, number: int) -> None:
        if number == 2:
            counting.move(iterator, -1)

    assert len(list(itertools.islice(Asked(look, 9), 4))) == 5
    assert [beside for _, beside in zip(Asked(look), [1, 2, 3, 4])] == [1, 2, 2, 3, 4]  # noqa: B905


def test_a_cycle_is_seen() -> None:
    seen: list[bool] = []

    def look(iterator: Any, number: int) -> None:
        seen.append(counting.look(iterator)[1])

    for wrap in (itertools.cycle, lambda it: itertools.islice(it, 5)):
        next(iter(wrap(Asked(look))))
    assert seen == [True, False]
