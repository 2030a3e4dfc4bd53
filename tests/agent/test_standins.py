"""What stands in for an agent's surroundings in the simulator behaves as the real thing: the same tests for both."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.agent.data_port import DataPort
from ff_core.agent.interfaces import PortOwner, WorkerPool
from ff_core.agent.workers import Workers
from ff_core.contract.auth import connect_data, new_secret
from ff_core.contract.job import JobSpec
from ff_core.copy.arena import Arena, ArenaLayout, slot_with
from ff_core.copy.page import StatusPage
from ff_core.copy.transports import StreamChoice
from ff_core.errors import CorruptSlotError, FailoverError, ProtocolError
from tests.controller.sim_agent import SimPort
from tests.controller.sim_memory import SimArena, SimPage
from tests.controller.sim_process import SimWorkers
from tests.copy.rig import Rig

EPOCH = 2
SECRET = new_secret()


@pytest.mark.parametrize("make", [StatusPage.create, SimPage])
def test_pages(make: Callable[[], Any]) -> None:
    page = make()
    assert page.load("w_stamp") == page.load("committed") == 0
    page.store("w_stamp", 2**64 - 1)
    page.notify()
    assert page.load("w_stamp") == 2**64 - 1 and page.load("committed") == 0


# ---- arenas --------------------------------------------------------------------------------------------------------


class Arenas(ABC):
    """An own arena of two slots, and how a version gets into one."""

    own: Any

    @abstractmethod
    def write(self, slot: int, version: int) -> None: ...


class RealArenas(Arenas):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.rig = stack.enter_context(Rig(holders=0))
        self.own = self.rig.own

    def write(self, slot: int, version: int) -> None:
        self.rig.run(slot, EPOCH, version)


class SimArenas(Arenas):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.own = SimArena(ArenaLayout(3, 100_000, 30_000, 4096, 4096, 8192), lambda arena, slot: None)

    def write(self, slot: int, version: int) -> None:
        self.own.begin(slot, EPOCH, version)
        self.own.finish(slot, (), (), ())


@pytest.mark.parametrize("kind", [RealArenas, SimArenas])
def test_arenas(kind: type[Any]) -> None:
    with contextlib.ExitStack() as stack:
        arenas: Arenas = kind(stack)
        arena = arenas.own
        assert not arena.journal()
        assert [info.complete for info in arena.slot_infos()] == [False, False]
        arenas.write(0, 4)
        arenas.write(1, 5)
        found = [(info.complete, info.epoch, info.version, info.full) for info in arena.slot_infos()]
        assert found == [(True, EPOCH, 4, True), (True, EPOCH, 5, True)]
        assert (arena.find(EPOCH, 5), arena.find(EPOCH + 1, 5), arena.find(EPOCH, 6)) == (1, None, None)
        arena.restamp(1, EPOCH + 1)
        assert slot_with(arena, EPOCH + 1, 5) == 1 and arena.find(EPOCH, 5) is None
        arena.verify(1)
        arena.corrupt(1, 0)
        assert arena.find(EPOCH + 1, 5) == 1, "damage is found by who reads it"
        with pytest.raises(CorruptSlotError):
            arena.verify(1)
        arena.empty(0)
        assert arena.find(EPOCH, 4) is None
        with pytest.raises(CorruptSlotError):
            slot_with(arena, EPOCH, 4)
        with pytest.raises(CorruptSlotError):
            arena.verify(0)


# ---- data ports ----------------------------------------------------------------------------------------------------


class Owner(PortOwner):
    """Lets rank 3 write one arena."""

    def __init__(self, arena: Any) -> None:
        self.arena, self.arrived = arena, 0

    def arena_for(self, hello: dict[str, Any]) -> Arena:
        return self.arena  # type: ignore[no-any-return]

    def data_arrived(self) -> None:
        self.arrived += 1


class Ports(ABC):
    """A port, a peer that connects to it, and a second port that sends to it. Used as a context."""

    port: Any
    source: Any
    owner: Owner
    full: Any  # an arena with version 5 of EPOCH
    order: dict[str, Any]

    @abstractmethod
    async def connect(self, epoch: int) -> Callable[[], bool] | None:
        """Whether the connection is still open; None if it was refused."""


class RealPorts(Ports):
    async def __aenter__(self) -> RealPorts:
        self.rig = Rig(holders=0)
        self.rig.run(0, EPOCH, 5)
        self.full = self.rig.own
        self.owner = Owner(Arena.create(ArenaLayout(3, self.rig.sent, 0, 4096, 4096, 8192)))
        self.port, self.source = DataPort(SECRET, lambda text: None), DataPort(SECRET, lambda text: None)
        self.address = await self.port.open("127.0.0.1")
        await self.source.open("127.0.0.1")
        for port in (self.port, self.source):
            port.share("tcp", True, StreamChoice(1))
        self.socks: list[socket.socket] = []
        self.order = {"to": self.address, "to_node": 0, "rank": 3}
        return self

    async def __aexit__(self, *_: object) -> None:
        for sock in self.socks:
            sock.close()
        await self.source.close()
        await self.port.close()
        self.owner.arena.close()
        self.rig.__exit__()

    async def connect(self, epoch: int) -> Callable[[], bool] | None:
        hello = {"rank": 3, "kind": "own", "epoch": epoch}
        try:
            sock = await asyncio.to_thread(connect_data, self.address, SECRET, hello, 30.0)
        except ProtocolError:
            return None
        self.socks.append(sock)
        sock.setblocking(False)

        def is_open() -> bool:
            try:
                return sock.recv(1, socket.MSG_PEEK) != b""
            except BlockingIOError:
                return True
            except OSError:
                return False

        return is_open


class SimPorts(Ports):
    async def __aenter__(self) -> SimPorts:
        layout = ArenaLayout(3, 100_000, 0, 4096, 4096, 8192)
        self.full = SimArena(layout, lambda arena, slot: None)
        self.full.begin(0, EPOCH, 5)
        self.full.finish(0, (), None, ())
        self.owner = Owner(SimArena(layout, lambda arena, slot: None))
        self.port, self.source = SimPort(lambda node: None), SimPort(lambda node: self.port)
        self.order = {"to_node": 0, "rank": 3}
        self.driver = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.driver.cancel()

    async def _drive(self) -> None:
        while True:
            for part in (*self.source.outgoing, *self.port.incoming):
                part.step()
            await asyncio.sleep(0)

    async def connect(self, epoch: int) -> Callable[[], bool] | None:
        connection = self.port.accept("own", 3, epoch)
        return None if connection is None else lambda: connection.open


async def until(condition: Callable[[], Any]) -> None:
    """The test's own deadline ends a wait for something that never happens."""
    while not condition():
        await asyncio.sleep(0.001)


def bounded(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60.0))


PORTS = pytest.mark.parametrize("kind", [RealPorts, SimPorts])


@PORTS
def test_ports_and_epochs(kind: type[Any]) -> None:
    async def body() -> None:
        async with kind() as ports:
            assert await ports.connect(0) is None, "nobody owns the port yet"
            ports.port.set_owner(ports.owner)
            with pytest.raises((FailoverError, AssertionError)):
                ports.port.set_owner(ports.owner)
            ports.port.enter_epoch(EPOCH)
            assert await ports.connect(EPOCH - 1) is None
            is_open = await ports.connect(EPOCH)
            assert is_open is not None and is_open()
            await ports.port.retire_before(EPOCH)
            assert ports.port.retired_before == EPOCH and is_open(), "its own epoch is not retired"
            await ports.port.retire_before(EPOCH + 1)
            assert ports.port.retired_before == EPOCH + 1
            await until(lambda: not is_open())
            late = await ports.connect(EPOCH)
            if late is not None:
                await until(lambda: not late())
            ports.port.enter_epoch(EPOCH + 1)
            after = await ports.connect(EPOCH + 1)
            assert after is not None and after()

    bounded(body())


@PORTS
def test_ports_send_slots(kind: type[Any]) -> None:
    async def body() -> None:
        async with kind() as ports:
            ports.port.set_owner(ports.owner)
            for port in (ports.port, ports.source):
                port.enter_epoch(EPOCH)
            failures: list[str] = []
            ports.source.send(ports.order, ports.full, EPOCH, 5, failures.append)
            await until(lambda: ports.owner.arena.find(EPOCH, 5) is not None or failures)
            await until(lambda: ports.owner.arrived)
            assert not failures
            ports.source.send(ports.order, ports.full, EPOCH, 6, failures.append)
            await until(lambda: failures)
            assert "no complete slot of version 6" in failures[0]
            ports.full.corrupt(0, 0)
            ports.source.send(ports.order, ports.full, EPOCH, 5, failures.append)
            await until(lambda: len(failures) == 2)
            await ports.source.quiet()

    bounded(body())


# ---- processes -----------------------------------------------------------------------------------------------------


class RealPool:
    def __init__(self) -> None:
        self.ended: list[tuple[str, int]] = []
        job = JobSpec(["train.py"], 1, 2, "127.0.0.1", 1, show_output=False)
        self.pool: WorkerPool = Workers(
            job,
            0,
            SECRET,
            on_message=lambda worker, message: None,
            on_commit=lambda worker: None,
            on_dying=lambda worker, at: None,
            on_exit=lambda worker, code, at: self.ended.append((worker.uid, code)),
        )


class SimPool:
    def __init__(self) -> None:
        self.ended: list[tuple[str, int]] = []
        agent = SimpleNamespace(_exited=lambda worker, code, at: self.ended.append((worker.uid, code)))
        host: Any = SimpleNamespace(agent=agent, processes=[], alive=True, world=None)
        self.pool = host.workers = SimWorkers(host)
        self.driver = asyncio.create_task(self._drive(host))

    async def _drive(self, host: Any) -> None:
        while True:
            for process in list(host.processes):
                process.reap()
            await asyncio.sleep(0)


@pytest.mark.parametrize("kind", [RealPool, SimPool])
def test_pools(kind: type[Any]) -> None:
    async def body() -> None:
        made = kind()
        pool: WorkerPool = made.pool
        spare, other = await pool.spawn("spare", -1), await pool.spawn("other", 1)
        assert (list(pool.spares()), list(pool.ranks()), dict(pool.by_uid)) == (
            [spare],
            [other],
            {"spare": spare, "other": other},
        )
        assert pool.of_rank(1) is other and pool.of_rank(0) is None and pool.of_rank(-1) is spare
        assert not (spare.booted or spare.dying or spare.stuck or spare.gone) and spare.asked is spare.halted is None
        pool.promote(spare, 0)
        assert pool.of_rank(0) is spare and not pool.spares()
        other.dying = True
        assert pool.of_rank(1) is None and other in pool.ranks()
        other.process.kill_group(signal.SIGKILL)
        await until(lambda: made.ended)
        assert made.ended == [("other", -signal.SIGKILL)] and other.gone and "other" not in pool.by_uid
        other.send("regroup", epoch=1)  # into the void
        await pool.end_all(0.0)
        assert not pool.by_uid and spare.gone and made.ended[1][1] < 0

    bounded(body())
