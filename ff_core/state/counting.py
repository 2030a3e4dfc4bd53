"""`enumerate` around an iterator: its count is in no variable, and has to go back and forth with what is handed out.

    for number, batch in enumerate(tqdm(loader)):       # the loader finds the enumerate that asks it

Called within the iterator's `__next__`, when the count is the number that the next item gets.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from types import FrameType, GeneratorType
from typing import Any

_PLACE = object.__basicsize__  # of the count within CPython's object


class Unmovable(Exception):
    """This Python keeps the count elsewhere."""


def counts(iterator: Any) -> list[int]:
    """Of every enumerate that asks `iterator` right now, directly or through generators that run."""
    return [count for _, count in _around(iterator)]


def move(iterator: Any, by: int) -> None:
    """Raises Unmovable, with nothing changed."""
    for one, count in _around(iterator):
        _set(one, count, count + by)


def set_counts(iterator: Any, wanted: list[int]) -> None:
    """`wanted`: as counts() gave them in another process. Raises Unmovable."""
    for (one, count), right in zip(_around(iterator), wanted, strict=False):
        _set(one, count, right)


def _around(iterator: Any) -> list[tuple[Any, int]]:
    found: list[tuple[Any, int]] = []
    running = {id(frame) for frame in _frames()}
    for one in gc.get_objects():
        if type(one) is enumerate:
            reduced: Any = one.__reduce__()
            asked, count = reduced[1]
            if asked is iterator or (type(asked) is GeneratorType and id(asked.gi_frame) in running):
                found.append((one, count))
    return sorted(found, key=lambda pair: pair[1])


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _set(one: Any, count: int, wanted: int) -> None:
    if count == wanted:
        return
    place = ctypes.c_ssize_t.from_address(id(one) + _PLACE)
    if place.value != count:
        raise Unmovable
    place.value = wanted
    if one.__reduce__()[1][1] != wanted:
        place.value = count
        raise Unmovable
