"""The end of the training loop: the part of the controller that lets ranks go once none of them can be needed again.

A rank that leaves the loop waits. When all wait with the same version and W has reached it, all may go. A death after
that is no failover any more: live ranks have left the code that could be repeated. A script may have several loops. The
next one is protected again once its first version is committed, which is copied whatever the interval.
"""

from __future__ import annotations

from typing import Any

from ff_core.contract.schedule import CopySchedule
from ff_core.controller.failover_round import Step
from ff_core.controller.state import JobControl, JobState


class LoopEnd:
    """Of one start of the script; says in `JobState.left_version` that the ranks have left."""

    def __init__(self, state: JobState, control: JobControl, schedule: CopySchedule) -> None:
        self.state, self._control, self._schedule = state, control, schedule
        self.members, self.out = state.members, state.out

    def on_leaving(self, node: int, rank: int, epoch: int, version: int, stats: dict[str, Any] | None = None) -> None:
        """A rank waits at the loop's end with `version` sealed."""
        current = self.state.round
        if epoch != self.state.epoch or (current is not None and current.step in (Step.HALTING, Step.JOINING)):
            return
        if stats:
            self.out.emit("rank_stats", rank=rank, **stats)
        if self.state.stopping:  # no failover will need it
            self.out.send(node, "may_leave", epoch=epoch, version=version)
            return
        self.members.ranks[rank].leaving = version
        versions = {other.leaving for other in self.members.ranks.values()}
        if None not in versions and len(versions) > 1:
            each = ", ".join(f"rank {other.rank} after {other.leaving}" for other in self.members.ranks.values())
            self._control.finish(1, f"ranks leave the training loop after different iterations: {each}")
            return
        self.may_leave()

    def uneven(self, through: list[int], stuck: list[int]) -> str:
        """What to tell where ranks `through` wait at the loop's end and ranks `stuck` in a collective."""
        version = self.state.members.ranks[through[0]].leaving
        after = "" if version is None else f" after iteration {version}"

        def ranks(numbers: list[int]) -> str:
            return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(map(str, numbers))}"

        return (
            f"the ranks have different numbers of batches: {ranks(through)} went through the training loop{after}, and "
            f"{ranks(stuck)} would train on, in a collective that the others do not join. Give every rank the same "
            "number: a DistributedSampler, drop_last=True, or ff_deepspeed.batches(engine, loader, limit=...)"
        )

    def w_rose(self, version: int) -> None:
        """W has risen to `version`."""
        if self.state.left_version is not None and version > self.state.left_version:
            self.state.left_version = None  # another loop has begun
        self.may_leave()

    def may_leave(self) -> None:
        """Let everybody go once all wait with the same version and it is committed everywhere."""
        state = self.state
        versions = {other.leaving for other in self.members.ranks.values()}
        if len(versions) != 1 or None in versions:
            return
        (version,) = versions
        if version is None or state.w < version:
            return
        state.left_version = version
        self._schedule.left(version)
        if state.round is not None and state.round.step is Step.RESUMED:
            state.round.close(self.out)  # the interrupted iteration was the last, there is none to redo
        for other in self.members.ranks.values():
            other.leaving = None
        for node in self.members.live_nodes():
            self.out.send(node, "may_leave", epoch=state.epoch, version=version)
