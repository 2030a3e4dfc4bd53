"""Counts around an iterator that are in no variable, and have to go back and forth with what is handed out: those of
`enumerate` and `islice`, and of what `zip` takes beside it.

    for number, batch in enumerate(tqdm(loader)):       # the loader finds the enumerate that asks it

Called within the iterator's `__next__`, when a count is the number that the next item gets.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import operator
import sys
from collections import deque
from collections.abc import Iterator
from types import FrameType, GeneratorType
from typing import Any

from ff_core.state.placed import Placed
from ff_core.state.values import IN_LINE, reduced

_PLACE = object.__basicsize__  # of an enumerate's count within CPython's object
_NEXT, _CNT = _PLACE + 8, _PLACE + 32  # of an islice: the number of the next item, and of those that were taken
_BESIDE = (zip, map, itertools.zip_longest)
_WRAPPERS = frozenset({enumerate, filter, itertools.islice, itertools.chain, itertools.cycle, *_BESIDE})


class Unmovable(Exception):
    """A count cannot be set: `str()` says of what."""


def counts(iterator: Any) -> list[int]:
    """Of all that asks `iterator` right now, directly or through others and generators that run."""
    return look(iterator)[0]


def move(iterator: Any, by: int) -> None:
    """Raises Unmovable."""
    for each in _counts(iterator):
        each.to(each.count + by)


def set_counts(iterator: Any, wanted: list[int]) -> None:
    """`wanted`: as counts() gave them in another process. Raises Unmovable."""
    for each, right in zip(_counts(iterator), wanted, strict=False):
        each.to(right)


def look(iterator: Any) -> tuple[list[int], bool]:
    """counts(), and whether an itertools.cycle asks `iterator`: it keeps the items of its first pass for the later
    ones. Together, because all objects of the process are gone through."""
    around = _around(iterator)
    return [each.count for each in _counts_of(around)], any(type(one) is itertools.cycle for one, _, _ in around)


_Wrapper = tuple[Any, tuple[Any, ...], int]
"""(what asks, what it was made of, the place of what is asked among that)."""


class _Count:
    """Of what cannot be set. count: only differences say something."""

    def __init__(self, of: Any, count: int = 0) -> None:
        self.of, self.count = of, count

    def to(self, wanted: int) -> None:
        if wanted != self.count:
            raise Unmovable(type(self.of).__qualname__)


class _OfEnumerate(_Count):
    def to(self, wanted: int) -> None:
        if wanted == self.count:
            return
        self.set(_PLACE, self.count, wanted)
        if self.of.__reduce__()[1][1] != wanted:
            self.set(_PLACE, wanted, self.count)
            raise Unmovable("enumerate")

    def set(self, place: int, now: int, wanted: int) -> None:
        value = ctypes.c_ssize_t.from_address(id(self.of) + place)
        if value.value != now:
            raise Unmovable(type(self.of).__qualname__)
        value.value = wanted


class _OfSlice(_OfEnumerate):
    def to(self, wanted: int) -> None:
        (_, following, _, step), taken = self.of.__reduce__()[1:]
        if wanted == self.count:
            return
        if (following, step) != (taken, 1):
            raise Unmovable("islice")
        self.set(_CNT, taken, wanted)
        self.set(_NEXT, taken, wanted)


class _OfLine(_Count):
    """An iterator over a list or a range, or a count: as many items fewer are left."""

    def to(self, wanted: int) -> None:
        by = wanted - self.count
        if by > 0:
            deque(itertools.islice(self.of, by), maxlen=0)
        elif by < 0:
            parts = reduced(self.of)
            place = parts[2] if parts is not None else None
            if type(place) is not int or type(self.of) not in IN_LINE:
                raise Unmovable(type(self.of).__qualname__)
            self.of.__setstate__(place + by)
        if _line_count(self.of) != wanted:
            raise Unmovable(type(self.of).__qualname__)


def _line_count(of: Any) -> int:
    return -operator.length_hint(of) if type(of) in IN_LINE else int(of.__reduce__()[1][0])


def _counts(iterator: Any) -> list[_Count]:
    return _counts_of(_around(iterator))


def _counts_of(around: list[_Wrapper]) -> list[_Count]:
    found: list[_Count] = []
    for one, parts, place in around:
        if type(one) is enumerate:
            found.append(_OfEnumerate(one, parts[1]))
        elif type(one) is itertools.islice:
            place_now: Any = one.__reduce__()
            found.append(_OfSlice(one, place_now[2]))
        elif isinstance(one, _BESIDE):
            found += [_beside(part, number < place) for number, part in enumerate(parts)
                      if number != place and not callable(part) and not isinstance(part, Placed)]  # fmt: skip
    return sorted(found, key=lambda each: (type(each).__name__, each.count))


def _beside(part: Any, is_first: bool) -> _Count:
    """is_first: its item for this turn was taken before, and nobody can exchange it."""
    is_counted = type(part) in IN_LINE or (type(part) is itertools.count and _is_whole(part))
    kind = _OfLine if is_counted and not is_first else _Count
    return kind(part, _line_count(part) if is_counted else 0)


def _is_whole(counter: Any) -> bool:
    made = counter.__reduce__()[1]
    return len(made) == 1 and type(made[0]) is int


def _around(iterator: Any) -> list[_Wrapper]:
    """From the inside."""
    running = {id(frame) for frame in _frames()}
    objects = gc.get_objects()  # a million perhaps, while a job waits for them: no line of Python for each
    made = [(one, reduced(one)) for one in itertools.compress(objects, map(_WRAPPERS.__contains__, map(type, objects)))]
    del objects
    wrappers = [(one, parts[1] or parts[2] or ()) for one, parts in made if parts is not None]  # a chain has a place
    asked = [] if iterator is None else [iterator]
    found: list[_Wrapper] = []
    while True:
        new = []
        for one, parts in wrappers:
            place = next((number for number, part in enumerate(parts) if _is_asked(part, asked, running)), None)
            if place is not None and not any(one is known for known, _, _ in found):
                new.append((one, parts, place))
        if not new:
            return found
        found += new
        asked += [one for one, _, _ in new]


def _is_asked(part: Any, asked: list[Any], running: set[int]) -> bool:
    return any(part is one for one in asked) or (type(part) is GeneratorType and id(part.gi_frame) in running)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
