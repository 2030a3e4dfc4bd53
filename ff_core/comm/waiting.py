"""Waiting for gloo, which may never call back (see `cut`): nothing here blocks in gloo without looking up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import compat
from .cut import POLL_S

if TYPE_CHECKING:
    from .era import Era

_SLICE_S = 0.05  # a wait that comes to its end costs torch 0.2 ms


def in_slices(era: Era, inner: Any, timeout: timedelta) -> bool:
    """`inner.wait(timeout)` of a collective; FailoverInterrupt if it is lost.

    Only for collectives: gloo's own sends and receives close their connection when a wait runs out of time.
    """
    end = time.monotonic() + timeout.total_seconds() if timeout else None
    while True:
        left_s = _SLICE_S if end is None else min(_SLICE_S, end - time.monotonic())
        try:
            return bool(inner.wait(timedelta(seconds=max(left_s, 0.001))))
        except Exception as error:
            if not compat.is_timeout(error) or (end is not None and time.monotonic() >= end):
                raise
        if inner.is_completed():  # just now, or the time that ran out was the operation's own
            return bool(inner.wait())
        if era.over and era.cut.lost():
            raise era.interrupt()


def aside(era: Era, call: Callable[[], Any]) -> Any:
    """`call()` in a thread of its own; FailoverInterrupt if it is lost: the thread is left to its timeout then."""
    outcome: list[Any] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # an interrupt too
            outcome.append(error)
        done.set()

    threading.Thread(target=run, name="ff-wait", daemon=True).start()
    while not done.wait(POLL_S):
        if era.over and era.cut.lost():
            raise era.interrupt()
    if isinstance(outcome[0], BaseException):
        raise outcome.pop()
    return outcome[0]
