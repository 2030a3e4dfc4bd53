"""Which rank hangs: it stopped making progress while others wait for it.

Every agent reports, with its heartbeat, each rank's progress count (collectives, steps, seals) and what it is doing.
The job hangs when no rank has made progress for the deadline. The culprits are then the ranks that are *not* waiting
(in a collective, at the gate, in recovery, at the end of their loop): they keep the others. Sometimes all wait, or none
seems to: a collective on a GPU returns at once, and the rank waits for it in the user's code. Then those with the
fewest collectives behind them keep the rest, provided that others are ahead. If neither tells, nobody is blamed, and
the job says so.

Ranks that wait at the end of their loop while all others wait in a collective hang for another reason: they have had
fewer batches. Nobody is killed for that; see `uneven`.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_LEAVING, ACTIVITY_RECOVERING

_WAITING = (ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_RECOVERING, ACTIVITY_LEAVING)
_UNEVEN_S = 60.0  # nothing but a collective that never ends looks like that for so long
_AUTO_FLOOR_S = 600.0  # saving a checkpoint from one rank may take minutes
_AUTO_ITERATIONS = 20.0


class HangDetector:
    """Fed by `observe` and `iterations`; `culprits` answers. Times are seconds of any clock that only grows."""

    def __init__(self, timeout_s: float | str) -> None:
        self._timeout_s = timeout_s
        self._seen: dict[int, tuple[int, int, float]] = {}  # rank -> progress, activity, since when
        self._iterations: deque[float] = deque(maxlen=101)
        self._last_iteration: float | None = None

    def reset(self) -> None:
        """A failover or restart: everybody starts counting anew."""
        self._seen.clear()
        self._last_iteration = None

    def iterations(self, count: int, now: float) -> None:
        """W has grown by `count`; 0: nothing is known of how long that took."""
        if self._last_iteration is not None and count:
            self._iterations.append((now - self._last_iteration) / count)
        self._last_iteration = now

    def observe(self, rank: int, progress: int, activity: int, now: float) -> None:
        """What an agent read from the status page of `rank`."""
        before = self._seen.get(rank)
        if before is None or before[:2] != (progress, activity):
            self._seen[rank] = (progress, activity, now)

    @property
    def deadline_s(self) -> float:
        """How long nobody may make progress: the configured time, or 20 times the job's own iterations, at least 10
        minutes."""
        if isinstance(self._timeout_s, (int, float)):
            return float(self._timeout_s)
        typical = median(self._iterations) if self._iterations else 0.0
        return max(_AUTO_FLOOR_S, _AUTO_ITERATIONS * typical)

    def stalled(self, world_size: int, now: float) -> bool:
        """Whether no rank has made progress for the deadline."""
        deadline_s = self.deadline_s
        silent = (now - since >= deadline_s for _, _, since in self._seen.values())
        return len(self._seen) >= world_size and all(silent)

    def uneven(self, world_size: int, now: float) -> tuple[list[int], list[int]] | None:
        """(ranks that are through their loop, ranks that wait for them in a collective), None if it is not so: the
        ranks have different numbers of iterations."""
        if len(self._seen) < world_size:
            return None
        quiet_s = min(self.deadline_s, _UNEVEN_S)
        if any(now - since < quiet_s for _, _, since in self._seen.values()):
            return None
        through = sorted(rank for rank, (_, activity, _) in self._seen.items() if activity == ACTIVITY_LEAVING)
        stuck = sorted(rank for rank, (_, activity, _) in self._seen.items() if activity == ACTIVITY_COLLECTIVE)
        return (through, stuck) if through and stuck and len(through) + len(stuck) == world_size else None

    def culprits(self, world_size: int, now: float) -> list[int]:
        """Ranks that keep the job from going on; empty if it goes on or if it cannot be told."""
        if not self.stalled(world_size, now):
            return []
        busy = [rank for rank, (_, activity, _) in self._seen.items() if activity not in _WAITING]
        if busy and len(busy) < world_size:
            return sorted(busy)
        least = min(progress for progress, _, _ in self._seen.values())
        behind = [rank for rank, (progress, _, _) in self._seen.items() if progress == least]
        return sorted(behind) if len(behind) < world_size else []
