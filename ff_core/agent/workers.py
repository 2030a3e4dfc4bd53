"""The workers and spares of one agent: started, linked, watched, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ff_core.agent.interfaces import RankProcess, WorkerPool
from ff_core.agent.process import WorkerProcess
from ff_core.contract.env import RANK_VARIABLES, worker_env
from ff_core.contract.job import JobSpec
from ff_core.contract.link import LINK_VARIABLE, AgentEnd, pair
from ff_core.contract.messages import BEFORE_ROLE, Message
from ff_core.copy.arena import Arena
from ff_core.copy.page import LifeWatch, StatusPage

_KILL_DELAY_S = 0.005


class Worker(RankProcess):
    """One process: a rank's worker, or a spare until `give_role`. rank is -1 for a spare."""

    def __init__(self, uid: str, rank: int, process: WorkerProcess, page: StatusPage) -> None:
        self.uid, self.rank, self.process, self.page = uid, rank, process, page
        self.notify_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.death_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.link: AgentEnd | None = None
        self.booted = False
        self.has_role = False
        self.warm = rank < 0
        self.asked: int | None = None
        self.halted: int | None = None
        self.since = 0
        self.restored = True
        self.is_ready = False
        self.stuck = False
        self.dying = False
        self.gone = False
        self._watch: LifeWatch | None = None
        self._before_role: list[tuple[str, list[int], dict[str, Any]]] = []

    def send(self, name: str, fds: tuple[int, ...] = (), **fields: Any) -> None:
        """See RankProcess."""
        if self.link is None or self.gone:
            return
        if not self.has_role and name not in BEFORE_ROLE:
            self._before_role.append((name, [os.dup(fd) for fd in fds], fields))
            return
        self.link.send(name, fds, **fields)

    def role_given(self) -> None:
        """The role is on its way: everything that waited for it goes after it."""
        self.has_role = True
        waiting, self._before_role = self._before_role, []
        for name, fds, fields in waiting:
            self.send(name, tuple(fds), **fields)
            for fd in fds:
                os.close(fd)

    def watch(self) -> None:
        """It holds its page's life from now on: the bell death_fd rings when it dies."""
        if self._watch is None:
            self._watch = LifeWatch(self.page, self.death_fd)

    def close(self) -> None:
        """After the process was reaped: no descriptor of it stays."""
        if self.link is not None:
            self.link.close()
        if self._watch is not None:
            self._watch.close()
        loop = asyncio.get_running_loop()
        for fd in (self.notify_fd, self.death_fd):
            loop.remove_reader(fd)
            os.close(fd)
        self.page.close()
        for _, fds, _ in self._before_role:
            for fd in fds:
                os.close(fd)


class Workers(WorkerPool):
    """Starts processes and reports what happens to them.

    on_message(worker, message): from a worker's link.  on_commit(worker): its engine rang.  on_dying(worker, at): it
    has been killed, and is torn down now; not told of an end in order.  on_exit(worker, code, at): the process is
    reaped and its session is killed. `at` is wall-clock seconds.
    """

    def __init__(
        self,
        job: JobSpec,
        node: int,
        secret: bytes,
        *,
        on_message: Callable[[Worker, Message], None],
        on_commit: Callable[[Worker], None],
        on_dying: Callable[[Worker, float], None],
        on_exit: Callable[[Worker, int, float], None],
    ) -> None:
        self.job, self.node, self.secret = job, node, secret
        self._on_message, self._on_commit, self._on_dying, self._on_exit = on_message, on_commit, on_dying, on_exit
        self.by_uid: dict[str, Worker] = {}
        self.restart = 0
        self.settings = job.config  # of the job as it trains: what a replacement starts with
        self.store: list[Any] | None = None
        self._ending = False
        self._waiting: set[asyncio.Task[None]] = set()

    def of_rank(self, rank: int) -> Worker | None:
        """See WorkerPool."""
        return next((worker for worker in self.by_uid.values() if worker.rank == rank and not worker.dying), None)

    def ranks(self) -> list[Worker]:
        """See WorkerPool."""
        return [worker for worker in self.by_uid.values() if worker.rank >= 0]

    def spares(self) -> list[Worker]:
        """See WorkerPool."""
        return [worker for worker in self.by_uid.values() if worker.rank < 0]

    async def spawn(self, uid: str, rank: int) -> Worker:
        """See WorkerPool."""
        ours, theirs = pair()
        env = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
        if rank >= 0:
            env |= worker_env(self.job, rank, self.restart)
        env |= {LINK_VARIABLE: str(theirs.fileno()), "FF_UID": uid, "PYTHONHASHSEED": self.job.hash_seed}
        log_dir = Path(self.job.out_dir) / "logs" / str(self.restart) if self.job.out_dir else None
        try:
            process = await WorkerProcess.spawn(
                [sys.executable, "-u", "-m", "ff_core.worker.worker_main"],
                env,
                rank=rank if rank >= 0 else None,
                log_dir=log_dir,
                show=self.job.show_output,
                prefix=self.job.log_prefix,
                pass_fds=(theirs.fileno(),),
            )
        finally:
            theirs.close()
        worker = Worker(uid, rank, process, StatusPage.create())
        worker.link = AgentEnd(ours, lambda message: self._on_message(worker, message), lambda: None)
        asyncio.get_running_loop().add_reader(worker.notify_fd, self._rung, worker)
        asyncio.get_running_loop().add_reader(worker.death_fd, self._died, worker)
        self.by_uid[uid] = worker
        task = asyncio.get_running_loop().create_task(self._watch(worker))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return worker

    def promote(self, spare: RankProcess, rank: int) -> None:
        """See WorkerPool."""
        spare.rank = rank
        spare.process.set_rank(rank)
        # Its role may have to wait for the end of whom it replaces: time to get ready for its device.
        spare.send("chosen", local_rank=int(worker_env(self.job, rank, self.restart)["LOCAL_RANK"]))

    def give_role(
        self, worker: RankProcess, rank: int, *, epoch: int, newcomer: bool, injections: list[Any], arena: Arena | None
    ) -> None:
        """See WorkerPool."""
        mine = self.by_uid.get(worker.uid)
        if mine is None:
            return  # it has just ended
        fds = (mine.page.fd, mine.notify_fd) + ((arena.fd,) if arena is not None else ())
        mine.send(
            "role",
            fds,
            rank=rank,
            env=worker_env(self.job, rank, self.restart),
            entrypoint=list(self.job.entrypoint),
            no_python=self.job.no_python,
            newcomer=newcomer,
            epoch=epoch,
            secret=self.secret,
            job={**self.job.to_wire(), "config": self.settings if newcomer else self.job.config},
            injections=injections,
            world_size=self.job.world_size,
            **({} if self.store is None else {"store": self.store}),
        )
        mine.role_given()

    def _rung(self, worker: Worker) -> None:
        try:
            os.eventfd_read(worker.notify_fd)
        except BlockingIOError:
            return
        self._on_commit(worker)

    def _died(self, worker: Worker) -> None:
        os.eventfd_read(worker.death_fd)
        if not worker.gone:
            worker.dying = True
            # Whatever it forked holds sockets of the job open; and should it live on after all (it has replaced itself
            # by another program), then not as this rank.
            # A little later: looking for its descendants takes milliseconds, and the controller should hear first.
            self._on_dying(worker, time.time())
            asyncio.get_running_loop().call_later(_KILL_DELAY_S, worker.process.kill_group, signal.SIGKILL)

    async def _watch(self, worker: Worker) -> None:
        code = await worker.process.wait()
        at = time.time()
        worker.gone = True
        if code != 0 or self._ending:  # whatever it forked (DataLoader workers) holds sockets of the job open
            worker.process.kill_group(signal.SIGKILL)
        self.by_uid.pop(worker.uid, None)
        try:
            if code > 0:
                await worker.process.drained(1.0)  # for its traceback; a killed process has none to wait for
            self._on_exit(worker, code, at)
        finally:
            worker.close()

    async def end_all(self, grace_s: float, signum: int = signal.SIGTERM) -> None:
        """See WorkerPool."""
        self._ending = True
        for worker in list(self.by_uid.values()):
            worker.process.kill_group(signum if grace_s > 0 and worker.rank >= 0 else signal.SIGKILL)
        deadline = time.monotonic() + grace_s
        while self.by_uid and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for worker in list(self.by_uid.values()):
            worker.process.kill_group(signal.SIGKILL)
        while self._waiting:
            await asyncio.wait(list(self._waiting))
        self._ending = False
