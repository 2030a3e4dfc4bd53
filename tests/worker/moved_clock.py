"""A clock that a test moves, for what `ff_core.worker` measures."""

from __future__ import annotations

from ff_core.worker.pacing import Clock


class MovedClock(Clock):
    """A device that is `behind` by some moments: what they are it will know later. `time` is the host's too."""

    def __init__(self) -> None:
        self.time, self.behind = 100.0, 0
        self.known: list[float] = []

    def now(self) -> int:
        self.known.append(self.time)
        return len(self.known) - 1

    def seconds(self, start: int, end: int) -> float | None:
        return self.known[end] - self.known[start] if end < len(self.known) - self.behind else None
