"""Which interval keeps what copying costs within the budget: from what every rank has measured. No messages, no clocks.

What a copied version costs at interval k has three parts:
  * `fixed_s` comes with every copy. A longer interval spreads it.
  * `late_s` is the wait until every rank has committed. A copy is under way for some iterations, and a longer interval
    leaves it more of them. With `commit: strict` it is waited for at once, and is fixed, too.
  * `slowed_s`: iterations in which a copy is under way are slower. That also comes with every copy. At 1 it cannot be
    seen. So `TRIED` is tried for some reports now and then, at first soon, then ever more rarely.

The slowest rank decides. The interval becomes longer after two reports of all ranks in a row that are over the budget.
It becomes shorter after more reports that allow it, and after twice as many each time that shorter proves too short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ff_core.contract.schedule import MOST
from ff_core.controller.slowing import Slowing

_UP, _DOWN, _DOWN_MOST = 2, 4, 256  # reports in a row
_MARGIN = 0.7  # of the budget: what must do for a shorter interval
_LEAST_S = 1e-6
#: Not 2: what a script does in every second iteration would pass for the copy's doing, or hide it.
TRIED = 3
_TRIAL = 6  # reports
_UNTRIED, _UNTRIED_MOST = 64, 1024  # reports from one trial to the next; the first one begins after _UP


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one rank at one interval, for a copied version; seconds. clear: after so many iterations it was committed
    everywhere, as far as the training thread saw.  slowed_s: None if there was nothing to compare with.  Others:
    ff_core.worker.cost.Cost."""

    fixed_s: float
    late_s: float
    clear: int
    iteration_s: float
    slowed_s: float | None = None


def _whole(iterations: float) -> int:
    """Rounded up, but for what floating point adds."""
    return math.ceil(iterations - 1e-6)


class IntervalChoice:
    """ranks: how many.  budget: share of the iteration.  strict: of the gate.  on_device: training threads run ahead of
    devices, so they see a version committed later than their device would, and what is shorter must be tried."""

    def __init__(self, ranks: int, budget: float, *, strict: bool, on_device: bool) -> None:
        self._ranks, self._budget, self._strict, self._on_device = ranks, budget, strict, on_device
        self.interval = 1
        self._measured: dict[int, Measured] = {}
        self._over = self._under = 0  # reports in a row
        self._patience = _DOWN
        self._shortened: int | None = None  # reports since the interval was made shorter
        self.slowing = Slowing()
        self.trying = False  # the interval is what it is for a trial
        self._tried, self._try_after = 0, _UP  # reports of the trial, or since the last one
        self._untried = _UNTRIED

    def measured(self, rank: int, interval: int, cost: Measured) -> None:
        """What `rank` measured at `interval`; of another than the chosen one it says nothing any more."""
        if interval == self.interval:
            self._measured[rank] = cost

    def forget(self) -> None:
        """A failover: ranks are elsewhere, and replicas."""
        self._measured.clear()
        self._over = self._under = 0

    def choose(self) -> tuple[int, Measured] | None:
        """(rank, what it measured) that is the reason for a new `interval`; None: it stays."""
        if len(self._measured) < self._ranks:
            return None
        measured, self._measured = self._measured, {}
        if self._shortened is not None:
            self._shortened += 1
        self.slowing.measured(cost.slowed_s for cost in measured.values())
        slowed_s = self.slowing.seconds
        measured = {rank: replace(cost, fixed_s=cost.fixed_s + slowed_s) for rank, cost in measured.items()}
        self._tried += 1
        needs = {rank: self._needed(cost) for rank, cost in measured.items()}
        worst = max(needs, key=lambda rank: (needs[rank], measured[rank].fixed_s + measured[rank].late_s))
        if needs[worst] > self.interval:
            self._over, self._under = self._over + 1, 0
            if self._over >= _UP and self.interval < MOST:
                return self._longer(needs[worst], worst, measured[worst])
            return None
        if self.interval == 1 and self._tried >= self._try_after:
            return self._try(worst, measured[worst])
        does = {rank: self._would_do(cost) for rank, cost in measured.items()}
        worst = max(does, key=lambda rank: does[rank])
        self._over, self._under = 0, self._under + 1 if does[worst] < self.interval else 0
        if self.trying:
            return self._tried_enough(measured)
        if self._under < self._patience:
            return None
        if self._shortened is not None and self._shortened > 4 * self._patience:
            self._patience = _DOWN  # the last time it was right
        self._change(does[worst])
        self._shortened = 0
        return worst, measured[worst]

    def share(self, interval: int, cost: Measured) -> float:
        """Of the iterations, lost at `interval` where `cost` was measured."""
        return (cost.fixed_s + cost.late_s) / (interval * max(cost.iteration_s, _LEAST_S))

    def _try(self, rank: int, cost: Measured) -> tuple[int, Measured]:
        self._change(TRIED)
        self.trying, self._try_after = True, self._untried
        self._untried = min(2 * self._untried, _UNTRIED_MOST)
        return rank, cost

    def _tried_enough(self, measured: dict[int, Measured]) -> tuple[int, Measured] | None:
        """At the end of a trial. Before it 1 was within the budget; now it is known what copies slow down."""
        if self._tried < _TRIAL:
            return None
        wanted = {rank: self._spread(cost) for rank, cost in measured.items()}
        worst = max(wanted, key=lambda rank: wanted[rank])
        was = self.interval
        self._change(min(was, wanted[worst]))
        self._shortened = 0
        return None if self.interval == was else (worst, measured[worst])

    def _longer(self, wanted: int, rank: int, cost: Measured) -> tuple[int, Measured]:
        if self._shortened is not None and self._shortened <= self._patience:
            self._patience = min(2 * self._patience, _DOWN_MOST)
        self._shortened = None
        self._change(min(wanted, MOST))
        return rank, cost

    def _change(self, interval: int) -> None:
        self.interval, self._over, self._under = interval, 0, 0
        self.trying, self._tried = False, 0

    def _needed(self, cost: Measured) -> int:
        """The shortest interval within the budget, if that is a longer one; else at most the present one."""
        iteration_s, budget = max(cost.iteration_s, _LEAST_S), self._budget
        if self._strict:
            return _whole((cost.fixed_s + cost.late_s) / (budget * iteration_s))
        if self.share(self.interval, cost) <= budget:
            return 1
        under_way_s = self.interval * iteration_s + cost.late_s if cost.clear >= self.interval else 0.0
        arrived = _whole((cost.fixed_s + under_way_s) / ((1 + budget) * iteration_s))
        return max(self._spread(cost), arrived, self.interval + 1)

    def _spread(self, cost: Measured) -> int:
        """The shortest interval over which what comes with every copy is within the budget."""
        return max(1, _whole(cost.fixed_s / (self._budget * max(cost.iteration_s, _LEAST_S))))

    def _would_do(self, cost: Measured) -> int:
        """The shortest interval that would keep within the budget with some room, as far as can be told."""
        room_s = _MARGIN * self._budget * max(cost.iteration_s, _LEAST_S)
        if self._strict:
            return max(1, _whole((cost.fixed_s + cost.late_s) / room_s))
        clear = cost.clear
        if clear >= self.interval and self._on_device:
            clear = self.interval - 1  # a trial
        return max(1, clear, _whole(cost.fixed_s / room_s))
