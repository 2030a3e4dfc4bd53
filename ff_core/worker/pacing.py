"""How long the copy engine has for a version: predicted from how long it had for earlier ones."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

_REMEMBERED = 8
#: Part of the shortest recent window that sending may take: the rest is for the acknowledgement, the other ranks, and
#: the way of W through the controller.
_SENT = 0.6
#: That downloads from a device are spread over. Sending follows them, and the training thread comes to the gate while
#: the device is still far from it.
_DOWNLOADED = 0.4


class Clock(Protocol):
    """Takes moments of the training, as training itself would: a CUDA device runs far behind its launches."""

    def now(self) -> Any:
        """This moment, where the training thread is. Waits for nothing."""

    def seconds(self, start: Any, end: Any) -> float | None:
        """From one moment to a later one; None: the device has not come to it yet."""


class HostClock:
    """For tensors on the host."""

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def seconds(self, start: float, end: float) -> float:
        """See Clock."""
        return end - start


class CopyWindow:
    """begun() when a version's copy begins, gate() when the training thread next arrives at the commit gate."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun: Any = None
        self._ended: deque[tuple[Any, Any]] = deque()
        self._windows: deque[float] = deque(maxlen=_REMEMBERED)

    def begun(self) -> None:
        """A version's copy begins now."""
        self._begun = self._clock.now()

    def gate(self) -> None:
        """The training thread arrives at the gate, and has not waited there yet."""
        if self._begun is not None:
            self._ended.append((self._begun, self._clock.now()))
            self._begun = None

    def forget(self) -> None:
        """A failover: the iteration that was interrupted says nothing about later ones."""
        self._begun = None
        self._ended.clear()

    def sent_s(self) -> float:
        """What the next version may take until it is acknowledged; 0: as fast as possible, nothing is known yet."""
        return _SENT * self._shortest()

    def downloaded_s(self) -> float:
        """What its way from the device may take; 0: likewise."""
        return _DOWNLOADED * self._shortest()

    def _shortest(self) -> float:
        while self._ended:
            seconds = self._clock.seconds(*self._ended[0])
            if seconds is None:
                break
            self._windows.append(seconds)
            self._ended.popleft()
        return min(self._windows) if len(self._windows) >= _REMEMBERED else 0.0
