"""The end of the training loop: the part of the controller that lets ranks go once none of them can be needed again.

A rank that leaves the loop waits. When all wait with the same version and W has reached it, all may go. After that live
ranks have left the code that could be repeated. So at a death all processes are given up. Their replacements go back to
the loop's end, and everybody does again what follows it. A script may have several loops. The next one is protected as
ever once its first version is committed, which is copied whatever the interval.
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

    def on_leaving(
        self, node: int, rank: int, epoch: int, version: int, again: bool, stats: dict[str, Any] | None = None
    ) -> None:  # fmt: skip
        """A rank waits at the loop's end with `version` sealed. again: a replacement would come to the same end."""
        current = self.state.round
        if epoch != self.state.epoch or (current is not None and current.step in (Step.HALTING, Step.JOINING)):
            return
        if stats:
            self.out.emit("rank_stats", rank=rank, **stats)
        if self.state.stopping:  # no failover will need it
            self.out.send(node, "may_leave", epoch=epoch, version=version)
            return
        self.members.ranks[rank].leaving, self.members.ranks[rank].again = version, again
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
            "number: a DistributedSampler, drop_last=True, or a loop over as many items on each: "
            "ff_deepspeed.batches(engine, loader, limit=N), ff_megatron.iterations(N)"
        )

    def w_rose(self, version: int) -> None:
        """W has risen to `version`."""
        if self.state.left_version is not None and version > self.state.left_version:
            self.state.left_version = None  # another loop has begun
            for rank in self.members.ranks.values():
                rank.marked = None
        self.may_leave()

    def may_leave(self) -> None:
        """Let everybody go once all wait with the same version and it is committed everywhere."""
        state = self.state
        versions = {other.leaving for other in self.members.ranks.values()}
        if len(versions) != 1 or None in versions:
            return
        (version,) = versions
        if version is None or state.w < version or not state.may_decide():
            return
        state.left_version = version
        if not all(other.again for other in self.members.ranks.values()):
            state.unfindable.add(version)
        self._schedule.left(version)
        if state.round is not None and state.round.step is Step.RESUMED:
            state.round.close(self.out)  # the interrupted iteration was the last, there is none to redo
        for other in self.members.ranks.values():
            other.leaving = None
        for node in self.members.live_nodes():
            self.out.send(node, "may_leave", epoch=state.epoch, version=version)

    def on_marked(self, node: int, rank: int, epoch: int, version: int) -> None:
        """A rank waits at the begin of a later loop, with `version` sealed."""
        if epoch == self.state.epoch:
            self.members.ranks[rank].marked = version
            self.holder_lost()

    def holder_lost(self) -> None:
        """Behind a loop nobody may be halted. So a node that only kept replicas is replaced when all ranks wait for
        their mark to be committed, which it cannot be without that node."""
        state, ranks = self.state, self.members.ranks.values()
        lost = {node for rank in ranks for node in rank.holders} - set(self.members.live_nodes())
        versions = {rank.marked for rank in ranks}
        if lost and state.has_left() and state.settled and len(versions) == 1 and None not in versions:
            self._control.begin_failover(set(), f"node {min(lost)}, which held replicas, is lost", self.out.now())

    def on_left(self, node: int, rank: int, epoch: int, version: int) -> None:
        """A rank cannot go on from where a failover takes it: the loop was left by `break` in the iteration that makes
        `version`, and it was halted behind that, or is to begin with that version. Replacements of all do the iteration
        again, and will leave the loop, too."""
        state = self.state
        if epoch == state.epoch:
            state.unfindable.add(version)
            cause = f"rank {rank} had left the training loop after iteration {version}"
            self._all_go_back(set(), cause, self.out.now())

    def go_back(self, dead: set[int], cause: str, at: float) -> None:
        """`dead` ranks died when all had left the loop, and no other one has committed anything. Everybody begins again
        as a replacement, at the loop's end, or a bit before where that cannot be found: a failover in which no process
        survives. If that cannot be, the script starts again."""
        self._all_go_back(dead, f"{cause} after the training loop had ended on every rank", at)

    def _all_go_back(self, dead: set[int], cause: str, at: float) -> None:
        state, ranks = self.state, self.members.ranks.values()
        problem = self._no_way_back()
        if problem:
            self._control.restart_job(f"{cause}. {problem}", dead)
            return
        self.out.say(f"{cause}: all processes are given up, and their replacements go on from the loop's end")
        state.left_version = None  # from here on a death is one in that loop
        playing = [(rank.node, rank.rank) for rank in ranks if rank.alive]
        for rank in ranks:
            # What old processes still say counts for nothing.
            rank.alive, rank.leaving, rank.marked, rank.uid = False, None, None, ""
        for node, number in playing:
            reason = "its script has left the loop, and a replacement goes back to its end"
            self.out.send(node, "fail_worker", rank=number, reason=reason)
        self._control.begin_failover(dead, cause, at)

    def _no_way_back(self) -> str:
        """Why nobody can go back to the loop's end; empty if all can."""
        if any(rank.exited for rank in self.members.ranks.values()):
            return "Some ranks' scripts had ended, too"
        if self.state.kinds.has_constant:
            return "The model has frozen parameters, which lie in no copy"
        return ""
