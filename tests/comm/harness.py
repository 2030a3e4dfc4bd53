"""Runs ranks as processes around a store, with a watchdog each: what the failover runtime does, in a few lines.

A rank's program is a function `program(worker, *args)` of an importable module; what it returns (plain values) is its
result. The test halts, kills and replaces ranks.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from ff_core.comm import GroupRegistry, install
from ff_core.comm.host import Collective, CommHost
from ff_core.errors import FailoverInterrupt

DEADLINE_S = 180  # for anything that would otherwise hang
_context = mp.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.comm.harness", "torch.distributed.tensor", "torch.distributed._functional_collectives", "torch._dynamo"]
)


class Host(CommHost):
    """The `CommHost` of a test's rank."""

    epoch = 0

    def __init__(self, port: int, epoch: int, verdict_s: float) -> None:
        self.port = port
        self.epoch = epoch
        self.verdict_s = verdict_s
        self.announced: int | None = None
        self.hints: list[str] = []
        self.entered = 0
        self.left = 0
        self.connections = 0
        self.begins: Callable[[], Collective | None] = lambda: None

    def connect_store(self, timeout_s: float) -> dist.Store:
        self.connections += 1
        timeout = timedelta(seconds=timeout_s)
        return dist.TCPStore("127.0.0.1", self.port, is_master=False, wait_for_workers=False, timeout=timeout)

    def store_is_at(self, host: str, port: int) -> bool:
        before, self.port = self.port, port
        return before != port

    def halted(self) -> int | None:
        return self.announced

    def on_failure(self, error: BaseException, site: str) -> None:
        self.hints.append(f"{site}: {error}")
        deadline = time.monotonic() + self.verdict_s
        while time.monotonic() < deadline:
            if self.announced is not None:
                raise FailoverInterrupt(self.announced)
            time.sleep(0.005)

    def enter(self, activity: int) -> None:
        self.entered += 1

    def leave(self) -> None:
        self.left += 1

    def collective_begins(self) -> Collective | None:
        return self.begins()


class Worker:
    """What a rank's program gets."""

    def __init__(self, rank: int, world: int, host: Host, registry: GroupRegistry | None, pipe: Connection) -> None:
        self.rank = rank
        self.world = world
        self.host = host
        self._registry = registry
        self._pipe = pipe
        self._heard = threading.Condition()
        self._words: list[str] = []

    @property
    def registry(self) -> GroupRegistry:
        assert self._registry is not None
        return self._registry

    def say(self, word: str) -> None:
        """Tells the test; it waits with `Job.hear`."""
        self._pipe.send(("word", word))

    def wait_for(self, word: str) -> None:
        """Waits for the test's `Job.tell`."""
        with self._heard:
            assert self._heard.wait_for(lambda: word in self._words, DEADLINE_S), f"nobody said {word!r}"

    def listen(self) -> None:
        """The watchdog."""
        while True:
            try:
                kind, value = self._pipe.recv()
            except (EOFError, OSError):
                return
            if kind == "halt":
                self.host.announced = value
                self.registry.halt(value)
            with self._heard:
                self._words.append(f"{kind}:{value}" if kind == "halt" else value)
                self._heard.notify_all()

    def regroup(self, epoch: int) -> None:
        """Drops, waits for the test's go, regroups."""
        self.registry.drop()
        self.say("dropped")
        self.wait_for(f"regroup {epoch}")
        self.host.epoch = epoch
        self.registry.regroup(epoch)
        if self.host.announced == epoch:
            self.host.announced = None
        self.registry.assert_generation(epoch)


def _main(
    program: Callable[..., Any], rank: int, world: int, port: int, pipe: Connection, options: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # as under torchrun: the store is served by nobody of the job
    )
    os.environ.update(options["env"])
    host = Host(port, options["epoch"], options["verdict_s"])
    registry = None
    if options["swappable"]:
        registry = install(host, solo=options["solo"], replay=options["replay"])
    worker = Worker(rank, world, host, registry, pipe)
    threading.Thread(target=worker.listen, daemon=True).start()
    try:
        pipe.send(("result", program(worker, *options["args"])))
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    os._exit(0)


def queues(pid: int) -> dict[str, str]:
    """What lies in the kernel for each TCP socket of a process: inode -> "unacknowledged:unread", bytes in hex."""
    mine = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            mine.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    tables = (Path(f"/proc/{pid}/net") / name for name in ("tcp", "tcp6"))
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return {row[9]: row[4] for row in rows if row[9] in mine}


class Job:
    """`world` ranks of one program. Use as a context manager: nothing is left running."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=DEADLINE_S)
        )
        self.ranks: dict[int, Any] = {}
        self.pipes: dict[int, Connection] = {}
        self._all: list[Any] = []

    def start(
        self,
        rank: int,
        program: Callable[..., Any],
        *args: Any,
        epoch: int = 0,
        solo: bool = False,
        replay: bytes | None = None,
        swappable: bool = True,
        verdict_s: float = 30.0,
        env: dict[str, str] | None = None,
    ) -> None:
        ours, theirs = _context.Pipe()
        options = {
            "args": args,
            "epoch": epoch,
            "solo": solo,
            "replay": replay,
            "swappable": swappable,
            "verdict_s": verdict_s,
            "env": env or {},
        }
        process = _context.Process(target=_main, args=(program, rank, self.world, self.store.port, theirs, options))
        process.start()
        theirs.close()
        self.ranks[rank], self.pipes[rank] = process, ours
        self._all.append(process)

    def start_all(self, program: Callable[..., Any], *args: Any, **options: Any) -> Job:
        for rank in range(self.world):
            self.start(rank, program, *args, **options)
        return self

    def kill(self, rank: int) -> None:
        """SIGKILL, as the kernel or a broken machine would; nobody is told."""
        os.kill(self.ranks[rank].pid, signal.SIGKILL)
        self.ranks[rank].join(DEADLINE_S)
        self.pipes.pop(rank).close()

    def tell(self, word: str) -> None:
        for pipe in self.pipes.values():
            pipe.send(("word", word))

    def halt(self, epoch: int, *ranks: int) -> None:
        for rank in ranks or list(self.pipes):
            self.pipes[rank].send(("halt", epoch))

    def wait_stuck(self, frozen: int) -> None:
        """Waits until `frozen` has stopped itself and no byte moves any more on a socket of a living rank."""
        pids = [self.ranks[rank].pid for rank in self.pipes]
        deadline = time.monotonic() + DEADLINE_S
        before, same = None, 0
        while same < 5:
            assert time.monotonic() < deadline, f"rank {frozen} was not stopped, or bytes still move"
            time.sleep(0.02)
            now = [queues(pid) for pid in pids]
            stopped = psutil.Process(self.ranks[frozen].pid).status() == psutil.STATUS_STOPPED
            same = same + 1 if stopped and now == before else 0
            before = now

    def receive(self, rank: int, kind: str) -> Any:
        """The next message of `rank`, which must be of `kind`."""
        assert self.pipes[rank].poll(DEADLINE_S), f"rank {rank} is silent"
        try:
            got, value = self.pipes[rank].recv()
        except EOFError:
            raise AssertionError(f"rank {rank} died") from None
        assert got == kind, f"rank {rank}: expected {kind}, got {got}: {value}"
        return value

    def hear(self, word: str, *ranks: int) -> None:
        """Waits until each of `ranks` (default: all living) has said `word`."""
        for rank in ranks or list(self.pipes):
            assert self.receive(rank, "word") == word

    def results(self) -> list[Any]:
        """Every living rank's result, by rank."""
        return [self.receive(rank, "result") for rank in sorted(self.pipes)]

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            if process.is_alive():
                process.kill()
            process.join(DEADLINE_S)
        for pipe in self.pipes.values():
            pipe.close()


def run(world: int, program: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """Runs `program` on `world` ranks to the end; their results by rank."""
    with Job(world) as job:
        return job.start_all(program, *args, **options).results()
