"""Simulated agents for `scripts/bench_control.py`: real connections and messages, no workers and no memory."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ff_core.contract import rpc
from ff_core.contract.activity import ACTIVITY_USER

LAYOUT = {"sent_bytes": 8192, "local_bytes": 0, "blob_capacity": 4096, "journal_bytes": 10}
_CONNECT_S = 120.0


class SimulatedAgent:
    """One node with its ranks: it says what an agent says, at once. heard: message -> when it came last (monotonic)."""

    def __init__(self, node: int, address: str, secret: bytes, settings: dict[str, Any]) -> None:
        self.node, self._address, self._secret, self._settings = node, address, secret, settings
        self.ranks: dict[int, str] = {}
        self.holds: set[int] = set()
        self.epoch = self.version = 0
        self.w = -1
        self.training = False
        self._halt_epoch: int | None = None
        self._dying: set[int] = set()
        self._dead: set[int] = set()
        self.heard: dict[str, float] = {}
        self._tasks: list[asyncio.Task[Any]] = []

    async def join(self) -> None:
        hello = {
            "node": self.node, "host_id": f"host{self.node}", "hostname": f"host{self.node}", "data_host": "127.0.0.1",
            "data_port": 1 + self.node, "free_bytes": 1 << 40, "pid": 1, "launch": {}, "machine": {}, "standby": False,
        }  # fmt: skip
        self._channel, self.stream, _ = await rpc.connect(self._address, self._secret, hello, _CONNECT_S)
        self._tasks = [asyncio.create_task(part) for part in (self.stream.pump(), self._receive(), self._beat())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def say(self, name: str, **fields: Any) -> None:
        self.stream.send(name, **fields)

    def commit(self, version: int) -> None:
        """All ranks have committed `version`."""
        self.version = version
        self.say("commit", epoch=self.epoch, versions=dict.fromkeys(self.ranks, version))

    async def _beat(self) -> None:
        while True:
            progress = {rank: [self.version, ACTIVITY_USER, 0.0, False] for rank in self.ranks}
            self.say("beat", count=1, free_bytes=1 << 40, progress=progress)
            await asyncio.sleep(self._settings["heartbeat_interval_s"])

    async def _receive(self) -> None:
        while (message := await self.stream.receive()) is not None:
            name = message.pop("t")
            self.heard[name] = time.monotonic()
            handler = getattr(self, f"_on_{name}", None)
            if handler is not None:
                handler(**message)

    def _on_start(self, epoch: int, ranks: list[Any], **_: Any) -> None:
        self.epoch = epoch
        for rank, uid in ranks:
            self.ranks[rank] = uid
            self.say("worker_started", rank=rank, uid=uid, pid=1, warm=False)
            self.say("protect", rank=rank, **LAYOUT, settings=self._settings, has_constant=False, on_device=False)

    def _on_arenas(self, epoch: int, replicas: dict[int, Any], **_: Any) -> None:
        self.holds = set(replicas)
        self.say("arenas_ready", epoch=epoch)

    def _on_placement(self, **_: Any) -> None:
        for rank in self.ranks:
            self.say("training", rank=rank)
        self.training = True

    def _on_w(self, version: int, **_: Any) -> None:
        self.w = version

    def dies(self, rank: int) -> None:
        """The process that plays `rank` is killed: heard of twice, as ever."""
        self._dying.add(rank)
        self.say("worker_dying", rank=rank, uid=self.ranks[rank], at=time.time())

    def ends(self, rank: int) -> None:
        """The kernel is through with it."""
        uid, sealed = self.ranks[rank], self.version
        self._dying.discard(rank)
        self._dead.add(rank)
        self.say("worker_exit", rank=rank, uid=uid, code=-9, tail="", sealed=sealed, at=time.time())
        self._report()

    def _on_halt(self, epoch: int, **_: Any) -> None:
        self._halt_epoch = epoch
        self._report()

    def _report(self) -> None:
        if self._halt_epoch is None or self._dying:
            return
        own = [[rank, self.node, "own", self.epoch, self.version, True] for rank in self.ranks]
        held = [[rank, self.node, "replica", self.epoch, self.version, True] for rank in self.holds]
        live = {rank: self.version for rank in self.ranks if rank not in self._dead}
        self.say("inventory", epoch=self._halt_epoch, arenas=own + held, live=live)

    def _on_assign(self, rank: int, uid: str, **_: Any) -> None:
        self.ranks[rank] = uid
        self.say("worker_started", rank=rank, uid=uid, pid=2, warm=False)

    def _on_verdict(self, epoch: int, version: int, **_: Any) -> None:
        self.epoch, self.version, self._halt_epoch = epoch, version, None
        self._dead.clear()
        for rank in self.ranks:
            self.say("ready", rank=rank, epoch=epoch, restored_bytes=1, at=time.time())

    def _on_regroup(self, epoch: int) -> None:
        for rank in self.ranks:
            self.say("resumed", rank=rank, epoch=epoch, timings={"regroup": 0.0, "rebuild": 0.0, "scalars": 0.0})
            self.say("redone", rank=rank, epoch=epoch, version=self.version + 1, at=time.time())
