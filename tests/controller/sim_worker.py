"""A simulated worker: what `worker.session` and `worker.recovery` do, as a generator that yields wherever a
process may be preempted.

Fence, slot choice and re-commit are the product's own code (`Fence`, `Replicator`); the engine underneath is
`SimWriter`. `tests/worker/test_simulated.py` compares what it says with what a real session says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ff_core.contract.messages import WORKER_TO_AGENT, make, pack, unpack
from ff_core.contract.schedule import CopySchedule
from ff_core.contract.stamps import epoch_of, stamp, version_of
from ff_core.errors import EngineError, FailoverInterrupt
from ff_core.worker.fence import Fence
from tests.controller.sim_memory import History, SimArena, SimPage, SimReplicator, SimWriter, Violation
from tests.controller.sim_recovery import Recovering, Steps

if TYPE_CHECKING:
    from tests.controller.sim_agent import SimProcess
    from tests.controller.simulation import World


class SimWorker(Recovering):
    """One process that plays a rank once it has got its role."""

    def __init__(self, world: World, process: SimProcess, page: SimPage) -> None:
        self.world, self.process, self.page = world, process, page
        self.inbox: dict[str, tuple[dict[str, Any], Any]] = {}
        self.to_agent: deque[dict[str, Any]] = deque()
        self.rang = False
        self.fence: Fence | None = None
        self.rank = -1
        self.newcomer = False
        self.replicator: SimReplicator | None = None
        self.unique: History | None = None
        self.repl: History | None = None
        self.derived: History | None = None  # weights: of the version that all ranks' unique tensors were at
        self.const = False
        self.redo_until: int | None = None
        self.tells_in = 1  # version in which spares are told what to import
        self.pauses_at: int | None = None
        self.schedule = CopySchedule()
        self.forgotten = -1  # batches of iterations up to this one are gone
        self.main = self._main()

    # ---- what happens to it ----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """The training thread runs until it may be preempted."""
        try:
            return next(self.main)
        except StopIteration:
            return self.process.exit(0)
        except EngineError as error:
            raise Violation(f"rank {self.rank}: {error}") from error

    def engine_step(self) -> bool:
        actions = self.replicator.sim.actions() if self.replicator is not None else []
        if not actions:
            return False
        self.world.random.choice(actions)()
        return True

    def deliver(self, message: dict[str, Any], arena: Any) -> None:
        """The link's thread, which is the watchdog too."""
        if message["t"] == "halt":
            assert self.fence is not None, "a halt before the role"
            version, sealed = self.fence.halt(message["epoch"], lambda: None)
            if version >= 0 and not self.schedule.is_copied(version):
                version, sealed = -1, False
            if self.replicator is not None:
                self.replicator.sim.cancel()
            self.send("halted", epoch=message["epoch"], version=-1 if self.newcomer else version, sealed=sealed)
        else:
            self.inbox[message["t"]] = (message, arena)

    def send(self, name: str, **fields: Any) -> None:
        message = make(WORKER_TO_AGENT, name, **fields)
        self.to_agent.append(unpack(WORKER_TO_AGENT, pack(message)))

    # ---- waiting ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        assert self.fence is not None
        self.fence.check()

    def _until(self, ready: Callable[[], Any], check: Callable[[], None] | None = None) -> Steps:
        while True:
            (check or self._check)()
            if ready():
                return None
            yield False

    def _take(
        self, name: str, accept: Callable[[dict[str, Any]], bool], check: Callable[[], None] | None = None
    ) -> Steps:
        yield from self._until(lambda: name in self.inbox and accept(self.inbox[name][0]), check)
        yield True
        return self.inbox.pop(name)

    # ---- life ------------------------------------------------------------------------------------------------------

    def _main(self) -> Steps:
        role, _ = yield from self._take("role", lambda m: True, lambda: None)
        self.rank, self.newcomer = role["rank"], role["newcomer"]
        self.fence = Fence(self.page, role["epoch"])  # type: ignore[arg-type]
        self.send("booted")
        yield True
        if self.newcomer:
            yield from self._until_resumed()
            self.newcomer = False
            self.redo_until = self.fence.version + 1
        else:
            yield from self._start()
        while True:
            try:
                yield from self._train()
            except FailoverInterrupt:
                yield True
                yield from self._unless_left()
            else:
                if self.fence.version == self.world.options.iterations:
                    return
                yield from self._between()
                continue
            self.pauses_at = None
            interrupted = self.fence.sealed + 1
            yield from self._until_resumed()
            self.redo_until = max(self.fence.version + 1, interrupted)

    def _start(self) -> Steps:
        world, fence = self.world, self.fence
        assert fence is not None
        self.unique = self.repl = self.derived = ()
        self.const = True
        if world.options.has_constant and world.options.persist and self.rank == 0:
            self.send("constants", rank=0, file="constants", size=1)
        self.send(
            "protect",
            rank=self.rank,
            sent_bytes=4096,
            local_bytes=4096 if world.options.has_local else 0,
            blob_capacity=4096,
            journal_bytes=0,
            settings=world.settings,
            has_constant=world.options.has_constant,
            on_device=self.world.seed % 2 == 1,
        )
        message, arena = yield from self._take("arena", lambda m: True)
        self._open(arena)
        assert self.replicator is not None
        arena.has_journal = True
        yield from self._connect(message["holders"], fence.epoch)
        self.replicator.keep_blob(0, ())  # type: ignore[arg-type]
        world.resumed(self, fence.epoch, 0)
        self.schedule.begin_epoch(0, message["interval"])
        fence.resume(0, self._recommit)
        self.send("training", rank=self.rank)

    def _open(self, arena: SimArena) -> None:
        self.replicator = SimReplicator(self.rank, arena, self.page, SimWriter(arena, self._live, self._committed))

    def _live(self) -> tuple[History, History]:
        assert self.fence is not None
        if not self.fence._whole or self.unique is None or self.repl is None:
            raise Violation(f"rank {self.rank}: live tensors were read while they changed")
        return self.unique, self.repl

    def _committed(self, number: int) -> None:
        self.page.store("committed", max(self.page.load("committed"), number))
        self.rang = True

    def _connect(self, holders: list[list[Any]], epoch: int) -> Steps:
        assert self.replicator is not None
        self.replicator.connect(holders, epoch)
        self.replicator.sim.links.clear()
        for node, _, _ in holders:
            yield from self._until(partial(self.world.can_connect, node, epoch))
            self._check()  # a cancelled engine takes no more holders
            link = self.world.connect(node, "replica", self.rank, epoch)
            if link is not None:
                self.replicator.sim.links.append(link)
            yield True

    # ---- iterations ------------------------------------------------------------------------------------------------

    def _train(self) -> Steps:
        fence, replicator, world = self.fence, self.replicator, self.world
        assert fence is not None and replicator is not None
        while True:
            yield True
            if fence.sealed != fence.version:
                self._seal()
                yield True
                yield from self._pause()
            if fence.version in world.ends:
                break
            fence.check()
            arrived = world.collective(
                ("iteration", fence.epoch, fence.version + 1), self.rank, (self.unique, self.repl, self.derived)
            )
            yield from self._until(arrived)
            yield True
            yield from self._make_version()
        if replicator.newest != fence.version:
            yield from self._until(lambda: replicator.sim.is_copied(replicator.newest))
            if replicator.newest >= 0 and world.options.finish_waits:
                yield from self._committed_everywhere(replicator.newest)
            fence.resume(fence.version, self._copy_last)
        again = world.options.again
        self.send("leaving", rank=self.rank, epoch=fence.epoch, version=fence.version, again=again, stats=None)
        epoch, version = fence.epoch, fence.version
        yield from self._take("may_leave", lambda m: (m["epoch"], m["version"]) == (epoch, version))
        self.schedule.left(version)

    def _make_version(self) -> Steps:
        fence = self.fence
        assert fence is not None
        yield from self._gate()
        self.world.runs(fence.epoch, fence.version + 1)
        fence.enter_step()
        unique, repl = self.unique, self.repl
        assert unique is not None and repl is not None
        self.unique = self.repl = self.derived = None
        yield True
        self.unique, self.repl = (*unique, fence.epoch), (*repl, fence.epoch)
        self.derived = self.unique
        fence.leave_step(self._copy)

    def _between(self) -> Steps:
        """Behind the end of a loop that is not the last: an evaluation, and the mark of the next one. Nobody can go
        back here, so no process may be asked to."""
        fence, world = self.fence, self.world
        assert fence is not None
        try:
            arrived = world.collective(("evaluation", fence.epoch, fence.version), self.rank, self.unique)
            yield from self._until(arrived)
            yield True
            yield from self._make_version()
            yield True
            self._seal()
            self.send("marked", rank=self.rank, epoch=fence.epoch, version=fence.version)
        except FailoverInterrupt as error:
            raise Violation(f"rank {self.rank} is halted between two loops") from error
        with suppress(FailoverInterrupt):  # it is met in the loop
            yield from self._committed_everywhere(fence.version)

    def _copy(self, version: int) -> None:
        assert self.replicator is not None and self.fence is not None
        if version == self.schedule.next:
            self.replicator.begin(version)
            self.schedule.copied(version)
            self.world.copied(self.rank, self.fence.epoch, version)

    def _recommit(self, version: int) -> None:
        assert self.replicator is not None and self.fence is not None
        self.replicator.recommit(version)
        self.world.copied(self.rank, self.fence.epoch, version)

    def _copy_last(self, version: int) -> None:
        self._recommit(version)
        self.schedule.copied(version)

    def _gate(self) -> Steps:
        assert self.fence is not None and self.replicator is not None
        replicator = self.replicator
        yield from self._until(lambda: replicator.sim.is_copied(replicator.newest))
        due = self.fence.version + 1 == self.schedule.next
        if self.world.options.commit == "strict" or due or replicator.recommitted:
            yield from self._committed_everywhere(replicator.newest)
        if due:
            self.schedule.after_next(self.page.load("interval"))
            self.pauses_at = self.fence.version + 1 if self.page.load("pause") else None

    def _committed_everywhere(self, version: int) -> Steps:
        assert self.fence is not None
        epoch, page = self.fence.epoch, self.page

        def look() -> bool:
            if page.load("halt_epoch") > epoch:
                raise FailoverInterrupt(page.load("halt_epoch"))
            return page.load("w_stamp") >= stamp(epoch, version)

        yield from self._until(look)

    def _seal(self) -> None:
        assert self.fence is not None and self.replicator is not None
        history: Any = self.unique
        self.fence.seal(lambda version: self.replicator.seal(version, history))  # type: ignore[union-attr]
        word = self.page.load("w_stamp")
        if word and epoch_of(word) == self.fence.epoch:
            self.forgotten = max(self.forgotten, self.schedule.before(version_of(word)))
        if self.redo_until is not None and self.fence.version >= self.redo_until:
            self.redo_until = None
            self.send("redone", rank=self.rank, epoch=self.fence.epoch, version=self.fence.version, at=0.0)
        if self.fence.version == self.tells_in and self.rank == 0:
            self.send("preload", modules=["torch"], calls=[])

    def _pause(self) -> Steps:
        """The seal of a version behind which ranks move. The halt is met later, as any other is."""
        fence = self.fence
        assert fence is not None
        if fence.version == self.pauses_at:
            self.pauses_at = None
            yield from self._until(lambda: fence.halted() is not None, lambda: None)
