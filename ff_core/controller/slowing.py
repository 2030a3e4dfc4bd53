"""What iterations lose while a copy is under way, from many uncertain measurements of one rank or many.

Iterations differ by themselves, by more than a copy slows them. A mean of few of them says little. What counts is what
the mean is most likely not below.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import fmean, stdev

_LEAST, _KEPT = 4, 32  # rounds
_ERRORS = 2.0  # standard errors that the mean may be too high by


class Slowing:
    """Of a job. seconds: of one copied version, at least; 0.0 until that can be told."""

    def __init__(self) -> None:
        self._rounds: deque[float] = deque(maxlen=_KEPT)

    def measured(self, ranks: Iterable[float | None]) -> None:
        """One measurement of each rank. Ranks wait for each other in every iteration, so all measure the same."""
        known = [seconds for seconds in ranks if seconds is not None]
        if known:
            self._rounds.append(fmean(known))

    @property
    def known(self) -> bool:
        """There are enough measurements to say something."""
        return len(self._rounds) >= _LEAST

    @property
    def seconds(self) -> float:
        if not self.known:
            return 0.0
        return max(0.0, fmean(self._rounds) - _ERRORS * stdev(self._rounds) / len(self._rounds) ** 0.5)
