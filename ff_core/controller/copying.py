"""Which versions are copied: the part of the controller that says it to the ranks, and measures by their reports.

How the interval reaches all ranks in time: docs/protocol.md, section 3.
"""

from __future__ import annotations

from ff_core.contract.schedule import MOST, CopySchedule, most_lost
from ff_core.controller.interval_choice import IntervalChoice, Measured
from ff_core.controller.state import JobState


class Copying:
    """Of one start of the script. schedule: of the newest epoch, as far as W has come."""

    def __init__(self, state: JobState) -> None:
        self._state, self._out = state, state.out
        self.schedule = CopySchedule()
        self._choice: IntervalChoice | None = None

    # ---- what the ranks are told ------------------------------------------------------------------------------------

    def begin_epoch(self, version: int) -> int:
        """`version` is the epoch's first copied one. The interval from it to the next one."""
        if self._choice is not None:
            self._choice.forget()
        interval = self._interval()
        self.schedule.begin_epoch(version, interval)
        return interval

    def first(self) -> int:
        """The job begins to train, its settings are known: as begin_epoch(0)."""
        config = self._state.config
        self.settle()
        why = "begins with 1, then as measured (auto)" if config.interval == "auto" else "as configured"
        interval = self.begin_epoch(0)
        self._emit(0, interval, interval, why)
        return interval

    def settle(self) -> None:
        """The job's settings are known."""
        config = self._state.config
        if config.interval == "auto":
            self._choice = IntervalChoice(
                self._state.job.world_size,
                config.overhead_budget,
                strict=config.commit == "strict",
                on_device=self._state.kinds.on_device,
            )

    def w_rises(self, version: int) -> int:
        """W is about to rise to `version`. The interval from the next copied version to the one after it."""
        if version == self.schedule.next:
            self.schedule.copied(version)
        was = self._interval()
        chosen = self._choice.choose() if self._choice is not None else None
        interval = self._interval()
        self.schedule.after_next(interval)
        if chosen is not None:
            self._explain(was, interval, *chosen)
        return interval

    def _interval(self) -> int:
        configured = self._state.config.interval
        return self._choice.interval if self._choice is not None else 1 if configured == "auto" else configured

    # ---- what they say ----------------------------------------------------------------------------------------------

    def on_cost(self, node: int, rank: int, epoch: int, interval: int, **measured: float) -> None:
        """A rank has measured what copied versions cost it."""
        if epoch != self._state.epoch or self._choice is None:
            return
        clear = int(measured.pop("clear"))
        self._choice.measured(rank, interval, Measured(clear=clear, **measured))

    def _explain(self, was: int, interval: int, rank: int, cost: Measured) -> None:
        assert self._choice is not None
        budget, share = self._state.config.overhead_budget, self._choice.share(was, cost)
        slowed_s = self._choice.slowing.seconds
        slowed = f"and copies slow iterations down by {1e3 * slowed_s:.3g} ms"
        if not self._choice.slowing.known:
            slowed = "and what copies slow iterations down by is not known yet"
        why = (
            f"at {was} copying stops rank {rank} for {share:.2%} of its iterations of {1e3 * cost.iteration_s:.4g} ms: "
            f"{1e3 * (cost.fixed_s - slowed_s):.3g} ms for a copy, {1e3 * cost.late_s:.3g} ms until every rank has "
            f"committed, {slowed}; budget {budget:.2%}"
        )
        if self._choice.trying:
            why = f"for a while, to see what copies slow iterations down by; {why}"
        if interval == MOST and share * was > budget * MOST:
            why += f"; not to be kept: {MOST} is the longest"
        fields = {
            "lost_share": share,
            "rank": rank,
            "fixed_ms": 1e3 * (cost.fixed_s - slowed_s),
            "late_ms": 1e3 * cost.late_s,
            "slowed_ms": 1e3 * slowed_s,
        }
        self._emit(self.schedule.next, interval, was, why, iteration_ms=1e3 * cost.iteration_s, **fields)
        lost = most_lost(interval, strict=self._state.config.commit == "strict")
        self._out.say(
            f"interval {interval} from version {self.schedule.next} on ({why}); a death costs at most {lost} finished "
            f"iteration{'' if lost == 1 else 's'} and the one that runs"
        )

    def _emit(self, version: int, interval: int, was: int, why: str, **measured: float) -> None:
        lost = most_lost(interval, strict=self._state.config.commit == "strict")
        self._out.emit("interval", version=version, interval=interval, was=was, most_lost=lost, why=why, **measured)
