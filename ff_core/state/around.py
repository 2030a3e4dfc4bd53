"""Where a script is when it asks for a batch, as far as no variable shows it: its loops over ranges, lists and counts,
and the numbers of its generators that are running.

    for epoch in range(100):                # the place of this loop
        for batch in forever(loader):       # a generator of the script, which counts epochs
            ...

    places = around.places()        # of a rank, within a call that its loops make
    around.go_to(places)            # in its replacement, whose script has just made the same call

Unlike `ff_core.state.loops`, loops whose place cannot be told are passed over: somebody else knows where they are.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections import deque
from types import FrameType
from typing import Any

from ff_core.state import frames, loops
from ff_core.state.values import PLAIN

Place = list[Any]
"""Of one running function: [file and line, its loops as [name of the iterator's type, how far, or None], numbers and
texts of a generator or None]."""


def places() -> list[Place]:
    """Of the script's running functions, outermost first."""
    return [[loops.line_of(frame), [_place(each) for each in _loops(frame)], _numbers(frame)] for frame in _running()]


def go_to(wanted: list[Place]) -> None:
    """wanted: as places() gave them in another process. Where the script is elsewhere, nothing happens. A loop that is
    further than it was is left alone: the script has begun it where it wanted, and ends early if that was wrong."""
    running = _running()
    if [loops.line_of(frame) for frame in running] != [line for line, _, _ in wanted]:
        return
    for frame, (_, then, numbers) in zip(running, wanted, strict=True):
        iterators = _loops(frame)
        now = [_place(each) for each in iterators]
        if [name for name, _ in now] != [name for name, _ in then]:
            continue
        for iterator, (_, at), (_, wanted_at) in zip(iterators, now, then, strict=True):
            if at is not None and wanted_at is not None and wanted_at > at:
                deque(itertools.islice(iterator, wanted_at - at), maxlen=0)
        if numbers is not None:
            frames.set_variables(frame, {name: value for name, value in numbers.items() if name in frame.f_locals})


def _running() -> list[FrameType]:
    return list(reversed(list(frames.of_script())))


def _loops(frame: FrameType) -> list[Any]:
    try:
        return loops.iterators_of(frame)
    except loops.UnseenLoopError:
        return []


def _place(iterator: Any) -> list[Any]:
    name = type(iterator).__qualname__
    if type(iterator) in loops.COUNTED:
        return [name, -operator.length_hint(iterator)]
    if type(iterator) is itertools.count:
        made: Any = iterator.__reduce__()[1]
        return [name, made[0] if len(made) == 1 and type(made[0]) is int else None]
    if isinstance(iterator, enumerate):
        reduced: Any = iterator.__reduce__()
        inner = reduced[1][0]
        return [name, _place(inner)[1] if type(inner) in loops.COUNTED else None]
    return [name, None]


def _numbers(frame: FrameType) -> dict[str, Any] | None:
    if not frame.f_code.co_flags & inspect.CO_GENERATOR:
        return None
    return {name: value for name, value in frames.locals_of(frame).items() if type(value) in PLAIN}
