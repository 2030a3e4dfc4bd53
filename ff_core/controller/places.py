"""Ranks for which no spare and no node is left: the job waits for one to come, and says so.

The halt stays as it is meanwhile: survivors keep their state, and slots do not change. So whoever comes in time goes on
from the version that would have been gone on from at once.
"""

from __future__ import annotations

from ff_core.contract.job import NO_PLACE_CODE
from ff_core.controller.failover_round import FailoverRound
from ff_core.controller.state import JobControl, JobState

_REMIND_S = 60.0


class Places:
    """Of one start of the script."""

    def __init__(self, state: JobState, control: JobControl) -> None:
        self._state, self._control, self._out = state, control, state.out
        self._remind_at = 0.0

    def lacking(self, current: FailoverRound, version: int) -> None:
        """All else is decided: everybody could go on from `version`, but some ranks have no place."""
        absent, limit = self._absent(), self._state.config.place_timeout_s
        now = self._out.now()
        if current.waits_since is None:
            current.waits_since, self._remind_at = now, now + _REMIND_S
            self._out.emit("waiting", ranks=absent, timeout_s=limit, version=version)
            self._out.say(
                f"{current.cause}; no spare and no node is left for {_ranks(absent)}. The job waits up to {limit:g} s "
                f"(place_timeout_s) for a node: start the same command on one, with --standby{self._where()}. Then "
                f"training goes on "
                f"after iteration {version}"
            )
        self.tick(current, now)

    def tick(self, current: FailoverRound, now: float) -> None:
        """See to it that the wait ends, and is not forgotten by who watches."""
        absent = self._absent()
        if current.waits_since is None or not absent:
            return
        limit = self._state.config.place_timeout_s
        left = current.waits_since + limit - now
        if left <= 0:
            unkept = self._control.persist_last(current)
            if unkept is None:
                return  # the newest version is being written
            saved = self._state.last_checkpoint
            self._control.finish(
                NO_PLACE_CODE,
                f"{current.cause}; no spare and no node is left for {_ranks(absent)}, and none came within {limit:g} s "
                "(place_timeout_s). Have a --standby node or more --spares; "
                + (f"the newest persisted checkpoint is {saved[0]} (iteration {saved[1]})" if saved
                   else "no checkpoint was persisted by this job")
                + (f". {unkept}" if unkept else ""),
            )  # fmt: skip
        elif now >= self._remind_at:
            self._remind_at = now + _REMIND_S
            self._out.say(f"still waiting for a node that takes {_ranks(absent)}; {left:.0f} s are left")

    def _where(self) -> str:
        endpoint = self._state.endpoint
        return f" and --rdzv-endpoint {endpoint}" if endpoint else ""

    def _absent(self) -> list[int]:
        return sorted(self._state.members.absent())


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
