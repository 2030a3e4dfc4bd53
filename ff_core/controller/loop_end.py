"""The end of the training loop: the part of the controller that lets ranks go once none of them can be needed again.

A rank that leaves the loop waits. When all wait with the same version and W has reached it, all may go; a death
after that is no failover any more, because live ranks have left the code that could be repeated. A script may have
several loops: the next one is protected again once it has committed something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ff_core.controller.failover_round import Step

if TYPE_CHECKING:
    from ff_core.controller.controller import Controller


class LoopEnd:
    """left_version: with what version all ranks left the newest loop; None while a loop runs."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.members, self.out = controller.members, controller.out
        self.left_version: int | None = None

    def has_left(self) -> bool:
        """Every rank was told to leave the training loop, and no other loop has committed anything since."""
        return self.left_version is not None and self.controller.w <= self.left_version

    def on_leaving(self, node: int, rank: int, epoch: int, version: int, stats: dict[str, Any] | None = None) -> None:
        """A rank waits at the loop's end with `version` sealed."""
        owner = self.controller
        current = owner.failovers.round
        if epoch != owner.epoch or (current is not None and current.step in (Step.HALTING, Step.JOINING)):
            return
        self.members.ranks[rank].leaving = version
        if stats:
            self.out.emit("rank_stats", rank=rank, **stats)
        versions = {other.leaving for other in self.members.ranks.values()}
        if None not in versions and len(versions) > 1:
            each = ", ".join(f"rank {other.rank} after {other.leaving}" for other in self.members.ranks.values())
            owner.finish(1, f"ranks leave the training loop after different iterations: {each}")
            return
        self.may_leave()

    def uneven(self, through: list[int], stuck: list[int]) -> str:
        """What to tell where ranks `through` wait at the loop's end and ranks `stuck` in a collective."""
        version = self.members.ranks[through[0]].leaving
        after = "" if version is None else f" after iteration {version}"

        def ranks(numbers: list[int]) -> str:
            return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(map(str, numbers))}"

        return (
            f"the ranks have different numbers of batches: {ranks(through)} went through the training loop{after}, and "
            f"{ranks(stuck)} would train on, in a collective that the others do not join. Give every rank the same "
            "number: a DistributedSampler, drop_last=True, or ff_deepspeed.batches(engine, loader, limit=...)"
        )

    def on_w(self, version: int) -> None:
        """W has risen to `version`."""
        if self.left_version is not None and version > self.left_version:
            self.left_version = None  # another loop has begun
        self.may_leave()

    def may_leave(self) -> None:
        """Let everybody go once all wait with the same version and it is committed everywhere."""
        owner = self.controller
        versions = {other.leaving for other in self.members.ranks.values()}
        if len(versions) != 1 or None in versions:
            return
        (version,) = versions
        if version is None or owner.w < version:
            return
        self.left_version = version
        current = owner.failovers.round
        if current is not None and current.step is Step.RESUMED:
            owner.failovers.close(current)  # the interrupted iteration was the last, there is none to redo
        for other in self.members.ranks.values():
            other.leaving = None
        for node in self.members.live_nodes():
            self.out.send(node, "may_leave", epoch=owner.epoch, version=version)
