"""What counts between an exact loop's items and the script goes back with them, and a plain loop looks for nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ff_core.state import counting
from ff_core.worker.items import Items


def items(end: int = 6) -> Items[int]:
    """0, 1, 2, 3, then once more from 2 on, as after a failure."""

    def numbers(of: weakref.ReferenceType[Items[int]]) -> Iterator[int]:
        yield from range(4)
        asked = of()
        assert asked is not None
        asked.count(-2)
        yield from range(2, end)

    return Items(numbers)


AGAIN = [0, 1, 2, 3, 2, 3, 4, 5]


def through(numbers: Any) -> Iterator[Any]:
    for number in numbers:  # noqa: UP028 (a frame of its own)
        yield number


@pytest.mark.parametrize(
    "loop",
    [
        lambda: list(enumerate(items())),
        lambda: list(enumerate(through(items()))),
        lambda: [(count, number) for count, number in enumerate(items())],
    ],
)
def test_what_counts_goes_back(loop: Callable[[], Any]) -> None:
    pairs = loop()
    assert [number for _, number in pairs] == AGAIN
    assert all(count == number for count, number in pairs)


def test_a_count_is_that_of_the_item() -> None:
    seen = []
    for count, number in enumerate(items()):
        assert count == number
        seen.append(number)
    assert seen == AGAIN


def test_a_plain_loop_goes_through_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(counting, "move", lambda iterator, by: moved.append(by))
    seen = []
    for number in items():
        seen.append(number)
    assert seen == AGAIN and moved == []
    assert [number for _, number in enumerate(items())] == AGAIN and moved == [-2]
    assert [number for _, number in enumerate(through(items()))] == AGAIN and moved == [-2, -2]


def test_the_items_end_when_the_loop_is_left() -> None:
    ended = []

    def numbers(of: Any) -> Iterator[int]:
        try:
            yield 1
        finally:
            ended.append(True)

    for _ in Items(numbers):
        break
    assert ended == [True]
