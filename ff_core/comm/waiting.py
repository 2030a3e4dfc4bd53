"""Waiting for gloo, which may never call back.

When a connection ends in the middle of a message, gloo forgets who waits for the rest of it: `Pair::signalException`
tells what is queued, not what is under way. Such an operation ends with its own timeout only, half an hour later. So
nothing here blocks in gloo without looking up, and what a halt has cut off is given up once it is *lost*: none of
gloo's threads is running any more, so that it cannot touch its tensors later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import compat

if TYPE_CHECKING:
    from .registry import GroupRegistry

_SLICE_S = 0.05  # a wait that comes to its end costs torch 0.2 ms
_POLL_S = 0.01
_GRACE_S = 0.05  # after the connections were cut: everything that gloo does call back about has ended by then


class Cut:
    """The end of a generation's connections, and whether what still waits for them is lost."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._gates: set[Gate] = set()
        self._lock = threading.Lock()

    def made(self) -> None:
        """All connections have been cut. Any thread, any number of times."""
        with self._lock:
            if self._at is None:
                self._at = time.monotonic()
                self._watch()

    def mended(self) -> None:
        """New connections exist."""
        with self._lock:
            self._at = None

    def lost(self) -> bool:
        """Whether an operation that has not ended by now never will."""
        at = self._at
        if at is None or time.monotonic() - at < _GRACE_S or not _gloo_sleeps():
            return False
        time.sleep(_POLL_S)  # between two of its steps a thread may sleep for a moment
        return _gloo_sleeps()

    def add(self, gate: Gate) -> None:
        """`gate` is opened at the latest when its operation is lost."""
        with self._lock:
            self._gates.add(gate)
            self._watch()

    def remove(self, gate: Gate) -> None:
        with self._lock:
            self._gates.discard(gate)

    def _watch(self) -> None:
        if self._at is not None and self._gates:
            threading.Thread(target=self._open_lost, name="ff-lost", daemon=True).start()

    def _open_lost(self) -> None:
        while not self.lost():
            time.sleep(_POLL_S)
            with self._lock:
                if not self._gates or self._at is None:
                    return
        with self._lock:
            gates = list(self._gates)
        for gate in gates:
            gate.open()


class Gate:
    """A future that is done when an inner one is, or when that is lost.

    `future`: of None; what the inner one holds, or that it is not done, is for the reader to find out.
    """

    def __init__(self, cut: Cut, inner: Any) -> None:
        self.future: torch.futures.Future[None] = torch.futures.Future()
        self._cut = cut
        self._once = threading.Lock()
        cut.add(self)
        inner.add_done_callback(lambda _: self.open())

    def open(self) -> None:
        """Any thread, any number of times."""
        if self._once.acquire(blocking=False):
            self._cut.remove(self)
            self.future.set_result(None)


def in_slices(registry: GroupRegistry, inner: Any, timeout: timedelta) -> bool:
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
        if registry.over and registry.cut.lost():
            raise registry.interrupt()


def aside(registry: GroupRegistry, call: Callable[[], Any]) -> Any:
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
    while not done.wait(_POLL_S):
        if registry.over and registry.cut.lost():
            raise registry.interrupt()
    if isinstance(outcome[0], BaseException):
        raise outcome.pop()
    return outcome[0]


def _gloo_sleeps() -> bool:
    """Whether no thread of gloo's is running, or ready to run, in this process."""
    for task in Path("/proc/self/task").iterdir():
        try:
            stat = (task / "stat").read_text()
        except OSError:  # it has ended
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        if "gloo" in name and rest.split()[0] != "S":
            return False
    return True
