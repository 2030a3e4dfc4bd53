"""The agent: one per (emulated) node. Supervises the node's workers, owns slots and replicas, carries out what the
controller says.

It decides nothing about the job. Runs in one event loop. Messages of the controller are handled in their order: what a
verdict changes (slots, epoch) changes before the next message is looked at.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from ff_core.agent.allegiance import Allegiance
from ff_core.agent.halting import Halting
from ff_core.agent.injections import Injections
from ff_core.agent.interfaces import Port, PortOwner, RankProcess, WorkerPool
from ff_core.agent.kernel_log import KernelLog
from ff_core.agent.newcomers import Newcomers
from ff_core.agent.persister import Persister
from ff_core.agent.pulse import Pulse
from ff_core.agent.replica_store import create_arenas
from ff_core.agent.spares import SparePool
from ff_core.agent.state import NodeState, Send
from ff_core.agent.verdicts import Verdicts
from ff_core.agent.workers import Workers
from ff_core.config.settings import Settings
from ff_core.contract.dispatch import Dispatch, offered
from ff_core.contract.job import LOST_CODE, JobSpec
from ff_core.contract.messages import CONTROLLER_TO_AGENT, FORWARDED, HANDSHAKE, WORKER_TO_AGENT, Message
from ff_core.contract.stamps import epoch_of, stamp, version_of
from ff_core.copy.arena import Arena
from ff_core.copy.transports import StreamChoice
from ff_core.errors import FailoverError, ProtocolError

#: What a failed job's workers have between SIGTERM and SIGKILL: they have nothing to save.
_FAILED_S = 10.0
_TAIL_LINES = 60


class Agent(PortOwner):
    """send(name, **fields): to the controller.  say(text): to the person watching.  port: becomes this agent's.
    kernel: of this node."""

    def __init__(
        self, node: int, job: JobSpec, secret: bytes, port: Port, send: Send, say: Callable[[str], None],
        kernel: KernelLog,
    ) -> None:  # fmt: skip
        self.settled = asyncio.Event()  # set whenever the settings have changed
        self.send, self.port = send, port
        self.workers: WorkerPool = Workers(
            job,
            node,
            secret,
            on_message=self._from_worker,
            on_commit=self._committed,
            on_dying=self._dying,
            on_exit=self._exited,
        )
        self.state = NodeState(node, job, port, self.workers, send, say)
        self.store = self.state.store
        self.newcomers = Newcomers(self.state)
        self.halting = Halting(self.state, self.newcomers)
        self.verdicts = Verdicts(self.state, self.newcomers)
        self.spares = SparePool(self.state, self._start)
        self.persister = Persister(self.state)
        self.allegiance, self.pulse = Allegiance(self.state), Pulse(self.state)
        self._kernel = kernel
        self.exit_code = 1
        self.done = asyncio.Event()
        self._from_controller = Dispatch(
            CONTROLLER_TO_AGENT,
            *map(offered, (self, self.persister, self.allegiance, self.pulse, Injections(self.state))),
            elsewhere=HANDSHAKE,
        )
        self._from_workers = Dispatch(
            WORKER_TO_AGENT,
            {"booted": self._booted, "halted": self._halted, "device_has_room": self._device_has_room},
            {"spare_ready": self._spare_ready, "spare_unfit": self._spare_unfit},
            {name: partial(self._forward, name) for name in FORWARDED - {"spare_ready"}},
        )
        port.set_owner(self)

    # ---- from the controller ----------------------------------------------------------------------------------------

    async def handle(self, message: Message) -> None:
        """One message of the controller, to its end."""
        fields = {key: value for key, value in message.items() if key != "t"}
        result = self._from_controller.of(message)(**fields)
        if result is not None:
            await result

    async def on_start(self, restart: int, epoch: int, ranks: list[Any], injections: list[Any], standby: bool) -> None:
        for worker in list(self.workers.by_uid.values()):
            worker.rank = -1  # of the previous start: its exit means nothing any more
        await self.workers.end_all(0.0)
        await self.port.quiet()
        await self.persister.quiet()
        self.store.clear()
        self.newcomers.clear()
        self.workers.restart = restart
        self.allegiance.forget_record()
        self.state.begin(epoch, standby=standby)
        self.port.enter_epoch(epoch)
        for rank, uid in ranks:
            worker = await self._start(uid, rank)
            worker.since = epoch
            self.workers.give_role(worker, rank, epoch=epoch, newcomer=False, injections=injections, arena=None)

    async def _start(self, uid: str, rank: int) -> RankProcess:
        worker = await self.workers.spawn(uid, rank)
        self.send("worker_started", rank=rank, uid=uid, pid=worker.process.pid, warm=False)
        return worker

    def settle(self, settings: dict[str, Any]) -> None:
        """Work by these settings (Settings.to_wire()) from now on. Raises OSError or ConfigError if that cannot be."""
        state = self.state
        config = state.config = Settings.from_wire(settings).config
        self.workers.settings = settings
        streams = StreamChoice(config.tcp_streams, state.job.nproc_per_node, state.job.world_size, config.replicas)
        self.port.share(config.transport, state.job.emulated, streams)
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

    def on_placement(self, epoch: int, holders: dict[int, Any], coverage: str, interval: int) -> None:
        for worker in self.workers.ranks():
            arena, mine = self.store.own[worker.rank], holders[worker.rank]
            worker.send("arena", (arena.fd,), epoch=epoch, holders=mine, coverage=coverage, interval=interval)

    def on_w(self, epoch: int, version: int, interval: int, pause: bool) -> None:
        if epoch != self.state.epoch or self.state.halt_epoch is not None:
            return
        self.store.free_retired()
        for worker in self.workers.ranks():
            worker.page.store("interval", interval)  # both first: who sees W may read them
            worker.page.store("pause", int(pause))
            worker.page.store("w_stamp", stamp(epoch, version))
            worker.page.notify()
        self.spares.refill()

    async def on_halt(self, epoch: int, dead: list[int], settled: list[int] | None = None) -> None:
        await self.halting.begin(epoch, dead, settled)

    async def on_verdict(self, **verdict: Any) -> None:
        await self.verdicts.carry_out(**verdict)

    async def on_assign(self, epoch: int, rank: int, uid: str, injections: list[Any], after_exit: bool) -> None:
        """A spare, or a process started now, becomes a rank; its role follows when its journal is here."""
        if epoch != self.state.halt_epoch:
            return
        self.state.standby = False
        worker = self.workers.by_uid.get(uid)
        warm = worker is not None
        if worker is None:
            worker = await self.workers.spawn(uid, rank)
        else:
            self.workers.promote(worker, rank)
            self.spares.taken()
        worker.since, worker.restored = epoch, False
        self.newcomers.assigned(rank, worker, epoch=epoch, injections=injections, after_exit=after_exit)
        self.send("worker_started", rank=rank, uid=uid, pid=worker.process.pid, warm=warm)
        self.data_arrived()

    def on_regroup(self, epoch: int) -> None:
        for worker in self.workers.ranks():
            worker.send("regroup", epoch=epoch)

    def on_may_leave(self, epoch: int, version: int) -> None:
        self.allegiance.forget_record()
        for worker in self.workers.ranks():
            worker.send("may_leave", epoch=epoch, version=version)

    def on_preload(self, **what: Any) -> None:
        self.spares.preload(what)

    def on_fail_worker(self, rank: int, reason: str) -> None:
        worker = self.workers.of_rank(rank)
        if worker is not None:
            self.state.say(f"rank {rank} is killed: {reason}")
            worker.process.kill_group(9)

    def signalled(self, signum: int) -> None:
        """The launcher's order to leave the job. Ctrl-C is meant at once; before other signals the controller is asked
        whether others take this node's ranks."""
        if signum == signal.SIGINT:
            self.on_stop(1, signum)
        elif not self.state.stopping:
            self.allegiance.signum = signum
            self.send("drain", signum=signum)

    def on_stay(self, signum: int, reason: str) -> Coroutine[Any, Any, None] | None:
        """Nobody takes this node's ranks: its workers get the signal."""
        self.state.say(f"{signal.Signals(signum).name} goes to the workers: {reason}")
        return self.on_stop(1, signum)

    def on_stop(
        self, code: int, signum: int, lost: bool = False, drained: bool = False
    ) -> Coroutine[Any, Any, None] | None:  # fmt: skip
        """The job ends with `code`, or (lost, drained) goes on without this node; signum: the signal that stops it.
        Workers that got one may still need this agent's answers to come to their end, so that takes its course beside
        the messages."""
        if self.state.stopping:
            return None
        self.state.stopping = True
        if drained:
            self.state.say("is drained: the job goes on without this node")
        self.exit_code = LOST_CODE if lost else code
        if not signum:
            return self._end(code, signum)
        self._ending = asyncio.get_running_loop().create_task(self._end(code, signum))
        return None

    async def _end(self, code: int, signum: int) -> None:
        if signum:
            ends = time.monotonic() + self.state.job.shutdown_timeout_s
            await self.workers.end_all(self.state.job.shutdown_timeout_s, signum)
            await self.persister.finish(ends)
        else:
            await self.workers.end_all(_FAILED_S if code else 0.0)
        await self.port.quiet()
        await self.persister.close()
        self.store.clear()
        self.send("stopped")
        self.done.set()

    # ---- from workers -----------------------------------------------------------------------------------------------

    def _from_worker(self, worker: RankProcess, message: Message) -> None:
        if worker.dying and message["t"] not in ("persisted", "inject_fired"):
            return  # what else it still had to say is about an epoch that is over
        fields = {key: value for key, value in message.items() if key != "t"}
        self._from_workers.of(message)(worker, **fields)

    def _forward(self, message: str, worker: RankProcess, **fields: Any) -> None:
        if "rank" in fields:
            fields["rank"] = worker.rank
        worker.restored = worker.restored or message == "resumed"
        self.send(message, **fields)

    def _spare_ready(self, worker: RankProcess, uid: str) -> None:
        worker.is_ready = True
        self.send("spare_ready", uid=worker.uid)

    def _spare_unfit(self, worker: RankProcess, uid: str, reasons: dict[str, str]) -> None:
        self.spares.unfit(worker, reasons)

    def _device_has_room(self, worker: RankProcess) -> None:
        self.newcomers.has_room(worker)

    def _booted(self, worker: RankProcess) -> None:
        worker.booted = True
        worker.watch()

    def _halted(self, worker: RankProcess, epoch: int, version: int, sealed: bool) -> None:
        self.halting.confirmed(worker, epoch, version, sealed)

    def _committed(self, worker: RankProcess) -> None:
        committed = worker.page.load("committed")
        if committed and epoch_of(committed) == self.state.epoch and self.state.halt_epoch is None:
            self.send("commit", epoch=self.state.epoch, versions={worker.rank: version_of(committed)})

    def _dying(self, worker: RankProcess, at: float) -> None:
        if worker.rank >= 0:
            self.send("worker_dying", rank=worker.rank, uid=worker.uid, at=at)

    def _exited(self, worker: RankProcess, code: int, at: float) -> None:
        self.newcomers.forget(worker)
        if worker.rank < 0:
            if not self.state.stopping:
                self.send("spare_gone", uid=worker.uid)
            return
        sealed = worker.page.load("sealed")
        self.halting.gone(worker)
        self.send(
            "worker_exit",
            rank=worker.rank,
            uid=worker.uid,
            code=code,
            tail="\n".join(worker.process.tail(_TAIL_LINES)) if code else "",
            sealed=version_of(sealed) if sealed else -1,
            at=at,
            kernel=self._kernel.of(worker.process.pid, code) if code else "",
        )
        self.halting.progress()
        self.data_arrived()

    # ---- data -------------------------------------------------------------------------------------------------------

    def arena_for(self, hello: dict[str, Any]) -> Arena:
        """See PortOwner."""
        arenas = self.store.own if hello.get("kind") == "own" else self.store.replicas
        rank = hello.get("rank")
        if rank not in arenas:
            raise ProtocolError(f"no arena here for {hello}")
        return arenas[rank]

    def data_arrived(self) -> None:
        """See PortOwner."""
        self.newcomers.look()
