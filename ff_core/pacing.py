"""How long the copy engine has for a version: predicted from how long it had for earlier ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_REMEMBERED = 8
#: Part of the shortest recent window that sending may take: the rest is for the acknowledgement, the other ranks, and
#: the way of W through the controller.
_SHARE = 0.6


class CopyWindow:
    """begun() when a version's copy begins, gate() when the training thread next arrives at the commit gate.

    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: float | None = None
        self._windows: deque[float] = deque(maxlen=_REMEMBERED)

    def begun(self) -> None:
        """A version's copy begins now."""
        self._begun = self._clock()

    def gate(self) -> None:
        """The training thread arrives at the gate, and has not waited there yet."""
        if self._begun is not None:
            self._windows.append(self._clock() - self._begun)
            self._begun = None

    def forget(self) -> None:
        """A failover: the iteration that was interrupted says nothing about later ones."""
        self._begun = None

    def seconds(self) -> float:
        """What the next version may take until it is acknowledged; 0: as fast as possible, nothing is known yet."""
        return _SHARE * min(self._windows) if len(self._windows) >= _REMEMBERED else 0.0
