"""Whether a process that makes no progress does anything at all: it computes, reads or writes, or its children do.

A rank that evaluates, compiles or saves makes none for minutes and is well. One that is stopped, or waits for a lock
that nobody gives back, does nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

_BUSY = 0.02  # of a processor: who waits needs less, for its threads that look about now and then
_BYTES = 4096  # read or written
_CHILDREN_S = 0.4  # a process that has done nothing for so long may wait for its children
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Sign(NamedTuple):
    """state: the kernel's letter for the main thread.  cpu_s, bytes: used, and read and written, since its begin."""

    state: str
    cpu_s: float
    bytes: int


class Vitals:
    """Of one process. children(): ids of those it has started, and that may work for it."""

    def __init__(self, pid: int, children: Callable[[], Iterable[int]]) -> None:
        self._pid, self._children = pid, children
        self._seen: dict[int, Sign] = {}
        self._since: float | None = None

    def still(self, *, moved: bool) -> tuple[float, bool]:
        """(seconds for which it has done nothing, whether it is stopped). moved: it has made progress since the last
        call."""
        now, mine = time.monotonic(), read(self._pid)
        if mine is None:
            return 0.0, False
        if self._since is None or moved:
            self._since, self._seen = now, {self._pid: mine}
            return 0.0, mine.state == "T"
        signs = {self._pid: mine}
        if now - self._since >= _CHILDREN_S:
            signs |= {pid: sign for pid in self._children() if (sign := read(pid)) is not None}
        if any(self._works(pid, sign, now - self._since) for pid, sign in signs.items()):
            self._since, self._seen = now, signs
        self._seen = {**signs, **self._seen}
        return now - self._since, mine.state == "T"

    def _works(self, pid: int, now: Sign, for_s: float) -> bool:
        before = self._seen.get(pid)
        if now.state in "RD":
            return True
        if before is None:
            return False  # a child that is looked at for the first time
        used = now.cpu_s - before.cpu_s
        return used > _TICK_S + _BUSY * for_s or now.bytes - before.bytes > _BYTES


def read(pid: int) -> Sign | None:
    """None: it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    moved = 0
    with contextlib.suppress(OSError):  # of another user
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        moved = sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))
    return Sign(fields[0], (int(fields[11]) + int(fields[12])) * _TICK_S, moved)
