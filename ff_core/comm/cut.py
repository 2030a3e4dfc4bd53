"""The end of a generation's connections, and who is told that an operation of gloo's is lost.

When a connection ends in the middle of a message, gloo forgets who waits for the rest of it: `Pair::signalException`
tells what is queued, not what is under way. Such an operation ends with its own timeout only, half an hour later. What
a halt has cut off is given up once it is *lost*: none of gloo's threads is running any more, so that it cannot touch
its tensors later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

POLL_S = 0.01  # between two looks at what may be lost
_GRACE_S = 0.05  # after the connections were cut: everything that gloo does call back about has ended by then


class Cut:
    """The end of a generation's connections, and whether what still waits for them is lost."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._latches: set[Latch] = set()
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
        time.sleep(POLL_S)  # between two of its steps a thread may sleep for a moment
        return _gloo_sleeps()

    def wait_lost(self, comes: Callable[[], bool]) -> None:
        """Returns when all that the cut has ended is lost, or over. comes: whether the cut has been announced.

        What had arrived before is still worked off, and the training thread may have left without waiting for it: an
        all-gather could write a weight after a restore.
        """
        while not (comes() and self.lost()):
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
