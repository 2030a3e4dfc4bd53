"""Which rank hangs: it stopped making progress while others wait for it.

Every agent reports, with its heartbeat, each rank's progress count (collectives, steps, seals), what it is doing, and
for how long its process has done nothing at all (`ff_core.agent.vitals`). The job hangs when no rank has made progress
for the deadline. The culprits are then the ranks that are *not* waiting (in a collective, at the gate, in recovery, at
the end of their loop): they keep the others. Sometimes all wait, or none seems to: a collective on a GPU returns at
once, and the rank waits for it in the user's code. Then those with the fewest collectives behind them keep the rest,
provided that others are ahead. If neither tells, nobody is blamed, and the job says so.

There are two deadlines where the settings leave it to the job ("auto"):

* Short, twice the slowest of the last iterations and a second: for ranks that do not wait and yet do nothing at all,
  and for processes that are stopped, whatever they were at. One that evaluates, compiles or saves does something. Not
  for many ranks at once.
* Long, ten minutes or more: for all others. A collective may wait for a network that is about to come back.

A rank may also do nothing on purpose: sleep, or wait for a file. Then it is replaced once, and its successor gets the
long deadline. What ends by itself in that time is no hang in this job, nor is what takes less than twice as long.

Ranks that wait at the end of their loop while all others wait in a collective hang for another reason: they have had
fewer batches. Nobody is killed for that; see `uneven`.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_LEAVING, ACTIVITY_RECOVERING

_WAITING = (ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_RECOVERING, ACTIVITY_LEAVING)
_UNEVEN_S = 60.0  # nothing but a collective that never ends looks like that for so long
_AUTO_FLOOR_S = 600.0  # saving a checkpoint from one rank may take minutes
_AUTO_ITERATIONS = 20.0
_FEW = 8  # more than this part of the ranks, and more than one: what they wait for is the storage, most likely
_KNOWN = 10  # iterations after which the slowest of them says something


class Hang(NamedTuple):
    """culprits: they keep the others; empty: it cannot be told who does.  short: the short deadline was over.
    stopped: they are.  text: why."""

    culprits: list[int]
    short: bool
    stopped: bool
    text: str


class _Rank(NamedTuple):
    """since: when progress or activity changed.  still_s: for how long its process has done nothing."""

    progress: int
    activity: int
    since: float
    still_s: float
    stopped: bool


class HangDetector:
    """Fed by `observe` and `iterations`; `judge` answers. Times are seconds of any clock that only grows."""

    def __init__(self, timeout_s: float | str) -> None:
        self._timeout_s = timeout_s
        self._seen: dict[int, _Rank] = {}
        self._iterations: deque[float] = deque(maxlen=101)
        self._last_iteration: float | None = None
        self._stall_s = 0.0  # the present one, if its culprits do nothing and are not stopped
        self._harmless_s = 0.0  # the longest of those that have ended by themselves
        self._blamed_shortly = False  # since the last iteration

    def reset(self) -> None:
        """A failover or restart: everybody starts counting anew."""
        self._seen.clear()
        self._last_iteration, self._stall_s = None, 0.0

    def blamed(self, hang: Hang) -> None:
        """What is to be done about `hang` has been done."""
        self._blamed_shortly |= hang.short
        self.reset()

    def looked(self) -> None:
        """Stopped processes have been let go: how long this iteration takes says nothing."""
        self._last_iteration = None

    def iterations(self, count: int, now: float) -> None:
        """W has grown by `count`; 0: nothing is known of how long that took."""
        if self._last_iteration is not None and count:
            self._iterations.append((now - self._last_iteration) / count)
            self._blamed_shortly = False
        self._last_iteration = now

    def observe(
        self, rank: int, progress: int, activity: int, now: float, still_s: float = 0.0, stopped: bool = False
    ) -> None:
        """What an agent read from the status page of `rank`, and has seen of its process."""
        before = self._seen.get(rank)
        if before is None or (before.progress, before.activity) != (progress, activity):
            self._harmless_s, self._stall_s = max(self._harmless_s, self._stall_s), 0.0
            self._seen[rank] = _Rank(progress, activity, now, still_s, stopped)
        else:
            self._seen[rank] = _Rank(progress, activity, before.since, still_s, stopped)

    @property
    def deadline_s(self) -> float:
        """How long nobody may make progress: the configured time, or 20 times the job's own iterations, at least 10
        minutes."""
        if isinstance(self._timeout_s, (int, float)):
            return float(self._timeout_s)
        typical = median(self._iterations) if self._iterations else 0.0
        return max(_AUTO_FLOOR_S, _AUTO_ITERATIONS * typical)

    @property
    def short_s(self) -> float | None:
        """How long a rank that keeps the others may do nothing at all; None: that is not known, or not wanted."""
        if isinstance(self._timeout_s, (int, float)) or len(self._iterations) < _KNOWN:
            return None
        slow = sorted(self._iterations)[-1 - len(self._iterations) // 100]  # of 101 the second: the 99th percentile
        return 2 * max(slow, self._harmless_s) + 1.0

    def judge(self, world_size: int, now: float) -> Hang | None:
        """None: somebody gets on, or may yet."""
        if len(self._seen) < world_size:
            return None
        silent_s = now - max(rank.since for rank in self._seen.values())
        culprits, stopped = self._culprits(world_size)
        return self._shortly(culprits, stopped, world_size, silent_s) or self._at_last(culprits, stopped, silent_s)

    def _shortly(self, culprits: list[int], stopped: bool, world_size: int, silent_s: float) -> Hang | None:
        waiting = any(self._seen[number].activity in _WAITING for number in culprits)
        many = len(culprits) > max(1, world_size // _FEW)
        if not culprits or ((waiting or many) and not stopped):
            return None
        stall_s = min([silent_s, *(self._seen[number].still_s for number in culprits)])
        if not stopped:
            self._stall_s = max(self._stall_s, stall_s)
        short_s = self.short_s
        if short_s is None or stall_s < short_s or (self._blamed_shortly and not stopped):
            return None
        why = f"(hang_timeout_s = auto: {short_s:.1f} s, from the iterations)"
        if stopped:
            return Hang(culprits, True, True, f"it is stopped, and has been for {stall_s:.1f} s {why}")
        text = f"it has done nothing for {stall_s:.1f} s while others wait for it {why}"
        return Hang(culprits, True, False, text)

    def _at_last(self, culprits: list[int], stopped: bool, silent_s: float) -> Hang | None:
        deadline_s = self.deadline_s
        if silent_s < deadline_s:
            return None
        if culprits:
            text = f"no progress for {deadline_s:g} s while others wait for it (hang_timeout_s)"
            return Hang(culprits, False, stopped, text)
        text = f"no progress for {deadline_s:g} s, and no rank is behind others: nobody is blamed"
        return Hang([], False, False, text)

    def uneven(self, world_size: int, now: float) -> tuple[list[int], list[int]] | None:
        """(ranks that are through their loop, ranks that wait for them in a collective), None if it is not so: the
        ranks have different numbers of iterations."""
        if len(self._seen) < world_size:
            return None
        quiet_s = min(self.deadline_s, _UNEVEN_S)
        if any(now - rank.since < quiet_s for rank in self._seen.values()):
            return None
        through = sorted(number for number, rank in self._seen.items() if rank.activity == ACTIVITY_LEAVING)
        stuck = sorted(number for number, rank in self._seen.items() if rank.activity == ACTIVITY_COLLECTIVE)
        return (through, stuck) if through and stuck and len(through) + len(stuck) == world_size else None

    def _culprits(self, world_size: int) -> tuple[list[int], bool]:
        """(ranks that keep the job from going on, whether because they are stopped); none if it cannot be told."""
        stopped = [number for number, rank in self._seen.items() if rank.stopped]
        if 0 < len(stopped) < world_size:
            return sorted(stopped), True
        busy = [number for number, rank in self._seen.items() if rank.activity not in _WAITING]
        if busy and len(busy) < world_size:
            return sorted(busy), False
        least = min(rank.progress for rank in self._seen.values())
        behind = [number for number, rank in self._seen.items() if rank.progress == least]
        return sorted(behind) if len(behind) < world_size else [], False
