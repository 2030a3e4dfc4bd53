"""Simulated processes as an agent sees them: `SimWorkers` stands in for `ff_core.agent.workers.Workers`."""

from __future__ import annotations

import signal
import types
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_core.agent.interfaces import Process, RankProcess, WorkerPool
from ff_core.contract.messages import AGENT_TO_WORKER, BEFORE_ROLE, make, pack, unpack
from tests.controller.sim_memory import SimPage
from tests.controller.sim_worker import SimWorker

if TYPE_CHECKING:
    from tests.controller.sim_agent import AgentHost


@types.coroutine
def pause() -> Any:
    """Give every other part of the simulation a chance."""
    yield


class SimProcess(RankProcess, Process):
    """Stands in for `ff_core.agent.workers.Worker` and its `WorkerProcess`."""

    def __init__(self, host: AgentHost, uid: str, rank: int) -> None:
        self.host, self.uid, self.rank = host, uid, rank
        self.page = SimPage()
        self.process = self  # the agent says worker.process.kill_group(9)
        self.pid = 1
        self.booted = self.has_role = self.gone = self.dying = self.stuck = False
        self.asked: int | None = None
        self.halted: int | None = None
        self.since = 0
        self.restored = True
        self.is_ready = False
        self.code: int | None = None
        self.frozen = False
        self.undead = False  # the kernel does not get through with it
        self.waiting: list[tuple[str, Any, dict[str, Any]]] = []
        self.to_worker: deque[tuple[dict[str, Any], Any]] = deque()
        self.worker = SimWorker(host.world, self, self.page)
        #: What it may do next; always the same ones, of which some do nothing. Asked for millions of times.
        self.steps: list[Callable[[], bool]] = [
            self.deliver, self.main_step, self.engine_step, self.to_agent, self.ring, self.notice, self.reap,
        ]  # fmt: skip

    def exit(self, code: int) -> bool:
        """The process ends, by itself or killed; its agent will notice."""
        if self.code is not None:
            return False
        self.code = code
        return True

    def kill_group(self, sig: int) -> None:
        self.exit(-sig)

    def still(self, *, moved: bool) -> tuple[float, bool]:
        return 0.0, self.frozen

    async def stacks(self, *, let_go: bool) -> str:
        return "it has no stack"

    def tail(self, n: int) -> list[str]:
        return [f"last words of rank {self.rank}"]

    def set_rank(self, rank: int) -> None:
        pass

    def send(self, name: str, fds: tuple[Any, ...] = (), **fields: Any) -> None:
        if self.gone:
            return
        if not self.has_role and name not in BEFORE_ROLE:
            self.waiting.append((name, fds, fields))
            return
        message = unpack(AGENT_TO_WORKER, pack(make(AGENT_TO_WORKER, name, **fields)))
        self.to_worker.append((message, fds[-1] if fds else None))

    def alive(self) -> bool:
        return self.code is None and self.host.alive

    def deliver(self) -> bool:
        if not self.alive() or self.frozen or not self.to_worker:
            return False
        name = self.to_worker[0][0]["t"]
        if name not in BEFORE_ROLE and self.worker.fence is None:
            return False  # it is still booting
        message, arena = self.to_worker.popleft()
        if name == "preload":
            self.worker.send("spare_ready", uid=self.uid)
        elif name == "chosen":
            if self.host.world.random.random() < 0.5:
                self.worker.send("device_has_room")
        else:
            self.worker.deliver(message, arena)
        return True

    def main_step(self) -> bool:
        return self.alive() and not self.frozen and self.worker.step()

    def engine_step(self) -> bool:
        # a killed process's threads may be in the middle of something until it has been reaped
        return not self.gone and not self.stuck and self.host.alive and not self.frozen and self.worker.engine_step()

    def to_agent(self) -> bool:
        if self.gone or not self.host.alive or not self.worker.to_agent:
            return False
        self.host.agent._from_worker(self, self.worker.to_agent.popleft())
        return True

    def ring(self) -> bool:
        if self.gone or not self.host.alive or not self.worker.rang:
            return False
        self.worker.rang = False
        self.host.agent._committed(self)
        return True

    def watch(self) -> None:
        """From now on its death is noticed before its end; or not, if the end is quicker."""

    def notice(self) -> bool:
        if self.gone or self.dying or not self.booted or self.code is None or self.code >= 0 or not self.host.alive:
            return False
        self.dying = True
        self.host.agent._dying(self, 0.0)
        return True

    def reap(self) -> bool:
        if self.gone or self.code is None or self.undead or not self.host.alive:
            return False
        self.gone = True
        self.host.workers.by_uid.pop(self.uid)
        self.host.processes.remove(self)
        self.host.agent._exited(self, self.code, 0.0)
        return True


class SimWorkers(WorkerPool):
    """Stands in for `ff_core.agent.workers.Workers`."""

    def __init__(self, host: AgentHost) -> None:
        self.host = host
        self.by_uid: dict[str, SimProcess] = {}
        self.restart = 0
        self.settings: dict[str, Any] = {}
        self.store: list[Any] | None = None

    def of_rank(self, rank: int) -> SimProcess | None:
        return next((worker for worker in self.by_uid.values() if worker.rank == rank and not worker.dying), None)

    def ranks(self) -> list[SimProcess]:
        return [worker for worker in self.by_uid.values() if worker.rank >= 0]

    def spares(self) -> list[SimProcess]:
        return [worker for worker in self.by_uid.values() if worker.rank < 0]

    async def spawn(self, uid: str, rank: int) -> SimProcess:
        await pause()
        process = SimProcess(self.host, uid, rank)
        self.by_uid[uid] = process
        self.host.processes.append(process)
        return process

    def promote(self, spare: RankProcess, rank: int) -> None:
        spare.rank = rank
        if self.by_uid[spare.uid].code is not None:  # killed a moment ago: nobody knew
            self.host.world.kills[rank] = self.host.world.kills.get(rank, 0) + 1
        spare.send("chosen", local_rank=rank)  # there are no devices: what they are called does not matter

    def give_role(
        self, worker: RankProcess, rank: int, *, epoch: int, newcomer: bool, injections: list[Any], arena: Any
    ) -> None:
        mine = self.by_uid.get(worker.uid)
        if mine is None:
            return
        mine.rank = rank
        mine.send(
            "role",
            rank=rank,
            env={},
            entrypoint=[],
            no_python=False,
            newcomer=newcomer,
            epoch=epoch,
            secret=b"",
            job={},
            injections=injections,
            world_size=self.host.world.job.world_size,
        )
        mine.has_role = True
        waiting, mine.waiting = mine.waiting, []
        for name, fds, fields in waiting:
            mine.send(name, fds, **fields)

    async def end_all(self, grace_s: float, signum: int = signal.SIGTERM) -> None:
        while self.by_uid:
            for worker in self.by_uid.values():
                worker.exit(-15)
                worker.undead = False
            await pause()
