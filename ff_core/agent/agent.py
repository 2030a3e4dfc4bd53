"""The agent: one per (emulated) node. Supervises the node's workers, owns slots and replicas, carries out what the
controller says.

It decides nothing about the job. Runs in one event loop; messages of the controller are handled in their order, and
what a verdict
changes (slots, epoch) changes before the next message is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ff_core.agent.data_port import DataPort
from ff_core.agent.halting import Halting
from ff_core.agent.newcomers import Newcomers
from ff_core.agent.spares import SparePool
from ff_core.agent.store import ReplicaStore, create_arenas
from ff_core.agent.verdicts import Verdicts
from ff_core.agent.workers import Worker, Workers
from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec
from ff_core.contract.messages import Message
from ff_core.contract.stamps import epoch_of, stamp, version_of
from ff_core.copy.arena import Arena
from ff_core.copy.transports import StreamChoice
from ff_core.errors import FailoverError, ProtocolError

Send = Callable[..., None]

_FORWARDED = frozenset(
    (
        "protect",
        "training",
        "ready",
        "resumed",
        "redone",
        "leaving",
        "hint",
        "persisted",
        "preload",
        "inject_fired",
        "bad_slot",
    )
)
_GRACE_S = 10.0


class Agent:
    """`send(name, **fields)` goes to the controller; `say(text)` to the person watching."""

    def __init__(
        self, node: int, job: JobSpec, secret: bytes, port: DataPort, send: Send, say: Callable[[str], None]
    ) -> None:
        self.node, self.job, self.send, self.say = node, job, send, say
        self.config = Settings.from_wire(job.config).config
        self.settled = asyncio.Event()  # set whenever `config` has changed
        self.epoch = 0
        self.store = ReplicaStore(node)
        self.port = port
        self.workers = Workers(
            job,
            node,
            secret,
            on_message=self._from_worker,
            on_commit=self._committed,
            on_dying=self._dying,
            on_exit=self._exited,
        )
        self.newcomers = Newcomers(self.store, self.workers)
        self.halting = Halting(self)
        self.verdicts = Verdicts(self)
        self.spares = SparePool(node, self.config.spares, self.workers, self._start, say)
        self.stopping = False
        self.exit_code = 1
        self.done = asyncio.Event()

    # ---- from the controller ----------------------------------------------------------------------------------------

    async def handle(self, message: Message) -> None:
        """One message of the controller, to its end."""
        fields = {key: value for key, value in message.items() if key != "t"}
        handler = getattr(self, f"on_{message['t']}", None)
        if handler is None:
            raise ProtocolError(f"a controller must not send {message['t']!r}")
        result = handler(**fields)
        if result is not None:
            await result

    async def on_start(self, restart: int, epoch: int, ranks: list[Any], injections: list[Any]) -> None:
        for worker in list(self.workers.by_uid.values()):
            worker.rank = -1  # of the previous start: its exit means nothing any more
        await self.workers.end_all(0.0)
        await self.port.quiet()
        self.store.clear()
        self.newcomers.clear()
        self.workers.restart, self.epoch = restart, epoch
        self.halting.over()
        self.port.enter_epoch(epoch)
        for rank, uid in ranks:
            worker = await self._start(uid, rank)
            self.workers.give_role(worker, rank, epoch=epoch, newcomer=False, injections=injections, arena=None)

    async def _start(self, uid: str, rank: int) -> Worker:
        worker = await self.workers.spawn(uid, rank)
        self.send("worker_started", rank=rank, uid=uid, pid=worker.process.pid, warm=False)
        return worker

    def settle(self, settings: dict[str, Any]) -> None:
        """Work by these settings (Settings.to_wire()) from now on. Raises OSError or ConfigError if that cannot be."""
        self.config = Settings.from_wire(settings).config
        self.workers.settings = settings
        self.spares.resize(self.config.spares)
        streams = StreamChoice(self.config.tcp_streams, self.job.nproc_per_node)
        self.port.share(self.config.transport, self.job.emulated, streams)
        self.settled.set()

    async def on_arenas(
        self, epoch: int, settings: dict[str, Any], own: dict[int, Any], replicas: dict[int, Any]
    ) -> None:
        try:
            self.settle(settings)
            made = await asyncio.to_thread(create_arenas, self.store.missing(own, replicas))
            self.store.allocate(own, replicas, made)
        except (OSError, MemoryError, FailoverError) as error:
            self.send("arenas_failed", epoch=epoch, reason=str(error))
            return
        self.send("arenas_ready", epoch=epoch)

    def on_placement(self, epoch: int, holders: dict[int, Any], protected: str) -> None:
        for worker in self.workers.ranks():
            arena = self.store.own[worker.rank]
            worker.send("arena", (arena.fd,), epoch=epoch, holders=holders[worker.rank], protected=protected)

    def on_w(self, epoch: int, version: int) -> None:
        if epoch != self.epoch or self.halting.epoch is not None:
            return
        self.store.free_retired()
        for worker in self.workers.ranks():
            worker.page.store("w_stamp", stamp(epoch, version))
            worker.page.notify()
        self.spares.refill()

    async def on_halt(self, epoch: int, dead: list[int]) -> None:
        await self.halting.begin(epoch, dead)

    async def on_verdict(self, **verdict: Any) -> None:
        await self.verdicts.carry_out(**verdict)

    async def on_assign(self, epoch: int, rank: int, uid: str, injections: list[Any], after_exit: bool) -> None:
        """A spare, or a process started now, becomes a rank; its role follows when its journal is here."""
        if epoch != self.halting.epoch:
            return
        worker = self.workers.by_uid.get(uid)
        warm = worker is not None
        if worker is None:
            worker = await self.workers.spawn(uid, rank)
        else:
            self.workers.promote(worker, rank)
            self.spares.taken()
        self.newcomers.assigned(rank, worker, epoch=epoch, injections=injections, after_exit=after_exit)
        self.send("worker_started", rank=rank, uid=uid, pid=worker.process.pid, warm=warm)
        self.data_arrived()

    def on_regroup(self, epoch: int) -> None:
        for worker in self.workers.ranks():
            worker.send("regroup", epoch=epoch)

    def on_may_leave(self, epoch: int, version: int) -> None:
        for worker in self.workers.ranks():
            worker.send("may_leave", epoch=epoch, version=version)

    def on_inject_ack(self, id: int, rank: int) -> None:
        worker = self.workers.of_rank(rank)
        if worker is not None:
            worker.send("inject_ack", id=id, rank=rank)

    def on_corrupt(self, rank: int, kind: str, id: int, to: int) -> None:
        arena = self.store.find(kind, rank)
        if arena is not None:
            complete = [(info.version, index) for index, info in enumerate(arena.slot_infos()) if info.complete]
            if complete:
                arena.corrupt(max(complete)[1], 0)
        self.send("corrupted", id=id, rank=rank, to=to)

    def on_preload(self, **what: Any) -> None:
        self.spares.preload(what)

    def on_fail_worker(self, rank: int, reason: str) -> None:
        worker = self.workers.of_rank(rank)
        if worker is not None:
            self.say(f"rank {rank} is killed: {reason}")
            worker.process.kill_group(9)

    async def on_stop(self, code: int, signum: int) -> None:
        self.stopping = True
        self.spares.close()
        self.exit_code = code
        await self.workers.end_all(_GRACE_S if code else 0.0)
        await self.port.quiet()
        self.store.clear()
        self.send("stopped")
        self.done.set()

    def progress(self) -> dict[int, list[int]]:
        """rank -> [progress count, activity] of the workers that have booted."""
        return {
            w.rank: [w.page.load("progress"), w.page.load("activity")]
            for w in self.workers.ranks()
            if w.booted and not w.dying and not w.gone
        }

    # ---- from workers -----------------------------------------------------------------------------------------------

    def _from_worker(self, worker: Worker, message: Message) -> None:
        name = message["t"]
        if worker.dying and name not in ("persisted", "inject_fired"):
            return  # what else it still had to say is about an epoch that is over
        if name in _FORWARDED:
            if "rank" in message:
                message["rank"] = worker.rank
            self.send(**{"name": name, **{key: value for key, value in message.items() if key != "t"}})
        elif name == "spare_ready":
            self.send("spare_ready", uid=worker.uid)
        elif name == "spare_unfit":
            self.spares.unfit(worker, message["reasons"])
        elif name == "booted":
            worker.booted = True
            worker.watch()
        elif name == "halted":
            self.halting.confirmed(worker, message["epoch"], message["version"], message["sealed"])

    def _committed(self, worker: Worker) -> None:
        committed = worker.page.load("committed")
        if committed and epoch_of(committed) == self.epoch and self.halting.epoch is None:
            self.send("commit", epoch=self.epoch, versions={worker.rank: version_of(committed)})

    def _dying(self, worker: Worker, at: float) -> None:
        if worker.rank >= 0:
            self.send("worker_dying", rank=worker.rank, uid=worker.uid, at=at)

    def _exited(self, worker: Worker, code: int, at: float) -> None:
        self.newcomers.forget(worker)
        if worker.rank < 0:
            if not self.stopping:
                self.send("spare_gone", uid=worker.uid)
            return
        sealed = worker.page.load("sealed")
        self.halting.gone(worker)
        self.send(
            "worker_exit",
            rank=worker.rank,
            uid=worker.uid,
            code=code,
            tail=self.workers.tail(worker) if code else "",
            sealed=version_of(sealed) if sealed else -1,
            at=at,
        )
        self.halting.progress()
        self.data_arrived()

    # ---- data -------------------------------------------------------------------------------------------------------

    def arena_for(self, hello: dict[str, Any]) -> Arena:
        arenas = self.store.own if hello.get("kind") == "own" else self.store.replicas
        rank = hello.get("rank")
        if rank not in arenas:
            raise ProtocolError(f"no arena here for {hello}")
        return arenas[rank]

    def data_arrived(self) -> None:
        """A journal or a version came in, or a role became possible."""
        self.newcomers.look(self.epoch)
