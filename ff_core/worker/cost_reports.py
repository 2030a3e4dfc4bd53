"""What the controller hears of a rank's costs: medians of a few copied versions, for its choice of the interval."""

from __future__ import annotations

from statistics import median, median_high

from ff_core.worker.cost import Cost
from ff_core.worker.parts import WorkerParts

_TOGETHER = 4  # versions: one that an evaluation or a slow moment spoilt does not count


class CostReports:
    """Of one rank."""

    def __init__(self, parts: WorkerParts) -> None:
        self._rank, self._link, self._fence = parts.rank, parts.link, parts.fence
        self._costs: list[Cost] = []
        self._epoch = -1

    def measured(self, cost: Cost) -> None:
        """Of one copied version; those of one report were copied in one epoch at one interval."""
        if self._epoch != self._fence.epoch or (self._costs and self._costs[-1].iterations != cost.iterations):
            self._costs.clear()
        self._epoch = self._fence.epoch
        self._costs.append(cost)
        if len(self._costs) < _TOGETHER:
            return
        costs, self._costs = self._costs, []
        slowed = [one.slowed_s for one in costs if one.slowed_s is not None]
        self._link.send(
            "cost",
            rank=self._rank,
            epoch=self._epoch,
            interval=cost.iterations,
            fixed_s=median(one.fixed_s for one in costs),
            late_s=median(one.late_s for one in costs),
            clear=median_high(one.clear for one in costs),
            iteration_s=median(one.iteration_s for one in costs),
            slowed_s=median(slowed) if slowed else None,
        )
