"""Loops of the script that are under way: where `for step in range(n)` stands is in no variable.

    places = loops.places()     # of a rank, within a call that its loops make
    loops.go_to(places)         # in its replacement, whose script has just come into the same loops

A loop's iterator lies on the interpreter's stack. CPython has no function for looking there, so this reads the frame;
`_STACK` says where it is in each Python. A trial with known iterators comes first.
"""

from __future__ import annotations

import collections
import ctypes
import dis
import functools
import itertools
import operator
import sys
from types import CodeType, FrameType
from typing import Any

from ff_core.state import frames

Place = list[Any]
"""Of one running function: [file and line, its loops as [name of the iterator's type, items that are left]]."""

COUNTED = tuple(type(each) for each in (iter(range(0)), iter(range(1 << 70)), iter([]), iter(()), iter(reversed([]))))
"""Iterators that know how many items are left."""
_POINTER = ctypes.sizeof(ctypes.c_void_p)
#: Python -> offset of the pointer to the frame's data, and offset of its first slot there. None: a pointer to that.
_STACK: dict[tuple[int, int], tuple[int, int | None]] = {
    (3, 10): (8 * _POINTER, None),
    (3, 11): (3 * _POINTER, 9 * _POINTER),
    (3, 12): (3 * _POINTER, 9 * _POINTER),
    (3, 13): (3 * _POINTER, 9 * _POINTER),
}


class UnseenLoopError(Exception):
    """A loop is under way whose place cannot be told: `str()` says which, and over what it goes."""


def places() -> list[Place]:
    """Of the script's running functions, outermost first, each with its `for` loops. Raises UnseenLoopError."""
    return [[line, [_left(iterator, line) for iterator in iterators]] for line, iterators in _running()]


def go_to(wanted: list[Place]) -> None:
    """`wanted`: as places() gave them in another process. Raises UnseenLoopError if these loops cannot get there."""
    running = _running()
    moves: list[tuple[Any, int]] = []
    if [line for line, _ in running] != [line for line, _ in wanted]:
        raise UnseenLoopError(f"the script is at {running[-1][0]}, and was at {wanted[-1][0]}")
    for (line, iterators), (_, then) in zip(running, wanted, strict=True):
        now = [_left(iterator, line) for iterator in iterators]
        moves += [(each, a[1] - b[1]) for each, a, b in zip(iterators, now, then, strict=False)]
        if [name for name, _ in now] != [name for name, _ in then] or min((by for _, by in moves), default=0) < 0:
            raise UnseenLoopError(f"the loops at {line} are {now}, and were {then}")
    for iterator, by in moves:
        collections.deque(itertools.islice(iterator, by), maxlen=0)


def _left(iterator: Any, line: str) -> list[Any]:
    name = type(iterator).__qualname__
    if isinstance(iterator, enumerate):
        inner, left = _left(iterator.__reduce__()[1][0], line)
        return [f"{name} of {inner}", left]
    if not isinstance(iterator, COUNTED):
        raise UnseenLoopError(f"the loop at {line} goes over a {name}")
    return [name, operator.length_hint(iterator)]


def _running() -> list[tuple[str, list[Any]]]:
    """Of the script's running functions, outermost first: where it is, and the iterators of its loops."""
    return [(line_of(frame), iterators_of(frame)) for frame in reversed(list(frames.of_script()))]


def line_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def iterators_of(frame: FrameType) -> list[Any]:
    """Those of the loops that are under way in a running function, outermost first. Raises UnseenLoopError."""
    count = sum(begin < frame.f_lasti < end for begin, end in _bodies(frame.f_code))
    found = _on_stack(frame, count) if count else []
    if len(found) < count:
        version = ".".join(map(str, sys.version_info[:2]))
        raise UnseenLoopError(
            f"the loop at {line_of(frame)} is a `for` loop, whose place Python {version} does not show"
        )
    return found


@functools.cache
def _bodies(code: CodeType) -> list[tuple[int, int]]:
    """Where in `code` the body of each `for` loop begins and ends."""
    return [(each.offset, each.argval) for each in dis.get_instructions(code) if each.opname == "FOR_ITER"]


def _on_stack(frame: FrameType, count: int) -> list[Any]:
    """The `count` lowest iterators: those of loops lie below whatever else is under way."""
    if not _can_be_seen():
        return []
    found: list[Any] = []
    place = _first_slot(frame)
    for _ in range(frame.f_code.co_stacksize):
        if len(found) == count:
            break
        address = _read(place)
        each = ctypes.cast(address, ctypes.py_object).value if address else None
        if hasattr(type(each), "__next__"):
            found.append(each)
        place += _POINTER
    return found


@functools.cache
def _can_be_seen() -> bool:
    if sys.version_info[:2] not in _STACK or sys.implementation.name != "cpython":
        return False
    held = None  # a variable that a function within has: a cell
    outer, inner = iter(range(2)), iter([1])
    for _ in outer:
        for held in inner:
            place = _first_slot(sys._getframe())
            return [_read(place), _read(place + _POINTER)] == [id(outer), id(inner)] and (lambda: held)() == 1
    return False


def _first_slot(frame: FrameType) -> int:
    pointer, first = _STACK[sys.version_info[:2]]
    data = _read(id(frame) + pointer)
    if first is None:
        return data
    code = frame.f_code
    names = {*code.co_varnames, *code.co_cellvars}
    return data + first + _POINTER * (len(names) + len(code.co_freevars))


def _read(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0
