"""The end of a generation's connections, and who is told that an operation of gloo's is lost.

When a connection ends in the middle of a message, gloo forgets who waits for the rest of it: `Pair::signalException`
tells what is queued, not what is under way. Such an operation ends with its own timeout only, half an hour later. What
a halt has cut off is given up once it is *lost*: none of gloo's threads works on anything any more, so that it cannot
touch its tensors later.

A thread that works is running. One that runs need not work: if a message is under way and whoever asked for it has
gone, gloo's event loop leaves the rest unread (`Pair::prepareRead`), and is woken up again at once, for ever. It has
nothing left to read (see `GroupSockets.shutdown`), so a little time is enough for all that it has to do.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("ff_core")
POLL_S = 0.01  # between two looks at what may be lost
_GRACE_S = 0.05  # after the connections were cut: everything that gloo does call back about has ended by then
#: Of a processor, since the cut: an event loop has told everybody by then who has waited for a connection.
_LOOP_S = 0.05
_TELL_S = 10.0
_WAITS = "a failover has waited %g s for gloo's threads to be through with what they were at; %s"
_LOOP = "gloo_tcp_loop"  # an event loop's name; the threads that reduce are called pt_gloo_runloop


class Cut:
    """The end of a generation's connections, and whether what still waits for them is lost."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._used: dict[str, float] = {}  # by gloo's threads, when the connections were cut: see _threads()
        self._latches: set[Latch] = set()
        self._lock = threading.Lock()

    def made(self) -> None:
        """All connections have been cut. Any thread, any number of times."""
        with self._lock:
            if self._at is None:
                self._at = time.monotonic()
                self._used = {task: used for task, _, _, used in _threads()}
                self._watch()

    def mended(self) -> None:
        """New connections exist."""
        with self._lock:
            self._at = None

    def lost(self) -> bool:
        """Whether an operation that has not ended by now never will."""
        at = self._at
        if at is None or time.monotonic() - at < _GRACE_S or not _gloo_is_idle(self._used):
            return False
        time.sleep(POLL_S)  # between two of its steps a thread may sleep for a moment
        return _gloo_is_idle(self._used)

    def wait_lost(self, comes: Callable[[], bool]) -> None:
        """Returns when all that the cut has ended is lost, or over. comes: whether the cut has been announced.

        What had arrived before is still worked off, and the training thread may have left without waiting for it: an
        all-gather could write a weight after a restore.
        """
        begun, told = time.monotonic(), False
        while not (comes() and self.lost()):
            if not told and time.monotonic() - begun > _TELL_S:
                told = True
                busy = [name for _, name, running, _ in _threads() if running]
                log.warning(_WAITS, _TELL_S, "no halt has come" if not comes() else f"still at work: {busy}")
            time.sleep(POLL_S)

    def add(self, latch: Latch) -> None:
        """`latch` is opened at the latest when its operation is lost."""
        with self._lock:
            self._latches.add(latch)
            self._watch()

    def remove(self, latch: Latch) -> None:
        with self._lock:
            self._latches.discard(latch)

    def _watch(self) -> None:
        if self._at is not None and self._latches:
            threading.Thread(target=self._open_lost, name="ff-lost", daemon=True).start()

    def _open_lost(self) -> None:
        while not self.lost():
            time.sleep(POLL_S)
            with self._lock:
                if not self._latches or self._at is None:
                    return
        with self._lock:
            latches = list(self._latches)
        for latch in latches:
            latch.open()


class Latch:
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


def _threads() -> Iterator[tuple[str, str, bool, float]]:
    """Of each of gloo's threads in this process: id, name, whether it is running or ready to run, seconds of a
    processor that it has used."""
    for task in Path("/proc/self/task").iterdir():
        try:
            stat = (task / "stat").read_text()
        except OSError:  # it has ended
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        if "gloo" in name:
            fields = rest.split()  # from the third on: state is 3, utime 14, stime 15
            yield task.name, name, fields[0] != "S", (int(fields[11]) + int(fields[12])) / _TICKS


_TICKS = os.sysconf("SC_CLK_TCK")


def _gloo_is_idle(used_before: dict[str, float]) -> bool:
    """Whether no thread of gloo's does anything. used_before: by each of them when the connections were cut."""
    return not any(
        running and not (name == _LOOP and used - used_before.get(task, used) >= _LOOP_S)
        for task, name, running, used in _threads()
    )
