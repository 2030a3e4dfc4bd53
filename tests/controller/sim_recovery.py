"""A simulated worker's way from a halt back to training: what `worker.recovery` does."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from ff_core.contract.schedule import CopySchedule
from ff_core.copy.arena import slot_with
from ff_core.errors import CorruptSlotError, FailoverInterrupt
from ff_core.worker.fence import Fence
from tests.controller.sim_memory import History, SimArena, SimReplicator, Violation

if TYPE_CHECKING:
    from tests.controller.simulation import World

Steps = Generator[bool, None, Any]  # yields whether it got anywhere


class Recovering:
    """The part of `SimWorker` that comes back from a halt."""

    world: World
    fence: Fence | None
    rank: int
    newcomer: bool
    replicator: SimReplicator | None
    unique: History | None
    repl: History | None
    derived: History | None
    const: bool
    forgotten: int
    schedule: CopySchedule
    _recommit: Callable[[int], None]
    send: Callable[..., None]
    _open: Callable[[SimArena], None]
    _take: Callable[..., Steps]
    _until: Callable[..., Steps]
    _connect: Callable[[list[list[Any]], int], Steps]

    def _until_resumed(self) -> Steps:
        fence = self.fence
        assert fence is not None
        while True:
            yield True
            try:
                yield from self._once()
                return
            except FailoverInterrupt:
                yield True
            except CorruptSlotError as error:
                self.send("bad_slot", rank=self.rank, epoch=fence.epoch, reason=str(error))
                yield from self._until(lambda: fence.halted() is not None, lambda: None)

    def _once(self) -> Steps:
        fence, world = self.fence, self.world
        assert fence is not None

        def wanted(message: dict[str, Any]) -> bool:
            halted = fence.halted()
            if halted is None:
                return message["epoch"] == fence.epoch if self.newcomer else False
            return message["epoch"] == halted

        verdict, arena = yield from self._take("go_on", wanted, lambda: None)
        epoch, version = verdict["epoch"], verdict["version"]
        if self.replicator is None:
            self._open(arena)
        replicator = self.replicator
        assert replicator is not None
        fence.begin_epoch(epoch)
        yield True
        if verdict["source"] == "live":
            replicator.keep_blob(version, replicator.blob(version))
        else:
            if verdict["filled"]:
                yield from self._take("slot_ready", lambda m: m["epoch"] == epoch)
            fence.tear()
            self.unique = self.derived = None
            yield True
            self._restore(replicator, epoch, version)
            self.const = self.const or bool(verdict.get("constants"))
            if world.options.breaks and version in world.ends and not verdict["resumes"]:  # its scalars say so
                yield from self._left(version)
        yield True
        self.send("ready", rank=self.rank, epoch=epoch, restored_bytes=0, at=0.0)
        yield from self._take("regroup", lambda m: m["epoch"] == epoch)
        arrived = world.collective(("regroup", epoch, version), self.rank, None)
        yield from self._until(arrived)
        yield from self._rebuild(verdict)
        if self.newcomer:  # the job may go on from its disk: nobody has told spares yet what to import
            self.tells_in = version + 1 if len(verdict["restored"]) == world.job.world_size else 1
        scalars: Any = replicator.blob(version)
        if scalars != self.unique:
            raise Violation(f"rank {self.rank}: scalars of {scalars} with tensors of {self.unique}")
        yield from self._connect(verdict["holders"], epoch)
        world.resumed(self, epoch, version)
        self.schedule.begin_epoch(version, verdict["interval"])
        fence.resume(version, self._recommit)
        self.send("resumed", rank=self.rank, epoch=epoch, timings={})

    def _unless_left(self) -> Steps:
        """Never returns behind a loop that was left by `break`. So it may be behind a body that was interrupted: what
        decides is old there."""
        fence, world = self.fence, self.world
        assert fence is not None
        version = fence.version + (fence.version == fence.sealed and fence.version not in world.ends)
        if not world.options.breaks or version not in world.ends:
            return
        if fence.sealed != version and world.random.random() < 0.5:
            return
        yield from self._left(version)

    def _left(self, version: int) -> Steps:
        """Nobody can go on from where the loop was left in the iteration that makes `version`: all are given up."""
        fence, told = self.fence, -1
        assert fence is not None
        while True:
            epoch = fence.halted() or fence.epoch
            if epoch > told:
                told = epoch
                self.send("left", rank=self.rank, epoch=epoch, version=version)
            yield False

    def _restore(self, replicator: SimReplicator, epoch: int, version: int) -> None:
        index = slot_with(replicator.arena, epoch, version)
        try:
            slot = replicator.sim.arena.verify(index)
        except CorruptSlotError:
            replicator.arena.empty(index)
            raise
        self.unique = slot.unique
        if slot.full:
            self.repl = slot.repl if self.world.options.has_local else slot.unique
        else:
            self.repl = None
        replicator.keep_blob(version, slot.scalars)  # type: ignore[arg-type]

    def _rebuild(self, verdict: dict[str, Any]) -> Steps:
        """Redundant state comes from the source rank by broadcast, weights of restored ranks from everybody's masters.
        Every rank takes part in both."""
        key = ("rebuild", verdict["epoch"], verdict["version"])
        arrived = self.world.collective(key, self.rank, (self.repl, self.const, self.unique), same=False)
        yield from self._until(arrived)
        yield True
        source = verdict.get("source_rank")
        if source is not None and self.rank in verdict["newcomers"]:
            self.repl, self.const, _ = self.world.contributions[key][source]
        if self.rank in verdict["restored"]:
            masters = {given[2] for given in self.world.contributions[key].values()}
            self.derived = masters.pop() if len(masters) == 1 else None
