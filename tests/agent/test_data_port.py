"""A data port and those who connect to it, over every transport."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ff_core.agent import data_port
from ff_core.agent.data_port import DataPort
from ff_core.agent.interfaces import PortOwner
from ff_core.contract.auth import new_secret
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.connect import Connection, connect, shared_name
from ff_core.copy.transports import StreamChoice
from ff_core.errors import ProtocolError
from tests.copy.rig import UCX, Rig

SECRET = new_secret()
LAYOUT = ArenaLayout(3, 100_000, 0, 4096, 4096, 8192)
EPOCH = 2
Address = tuple[str, int]


class Agent(PortOwner):
    """A data port that lets rank 3 write one arena."""

    def __init__(self, transport: str, emulated: bool) -> None:
        self.arena = Arena.create(LAYOUT)
        self.said: list[str] = []
        self.arrived = asyncio.Event()
        self.port = DataPort(SECRET, self.said.append)
        self.port.set_owner(self)
        self._choice = (transport, emulated)

    def data_arrived(self) -> None:
        self.arrived.set()

    def arena_for(self, hello: dict[str, Any]) -> Arena:
        if hello["rank"] != 3:
            raise ProtocolError(f"rank {hello['rank']} has no arena here")
        return self.arena

    async def open(self) -> Address:
        address = await self.port.open("127.0.0.1")
        self.port.share(*self._choice, StreamChoice(cores=8))
        self.port.enter_epoch(EPOCH)
        return address

    async def close(self) -> None:
        await self.port.close()
        self.arena.close()


def with_agent(transport: str, emulated: bool, body: Callable[[Agent, Address], Awaitable[None]]) -> None:
    async def run() -> None:
        agent = Agent(transport, emulated)
        try:
            await body(agent, await agent.open())
        finally:
            await agent.close()

    asyncio.run(asyncio.wait_for(run(), 120))


async def join(
    address: Address, transport: str, arena: Arena, streams: int | str = "auto", cores: int = 2, **hello: Any
) -> Connection:
    fields = {"rank": 3, "kind": "replica", "epoch": EPOCH} | hello
    secret = fields.pop("secret", SECRET)
    choice = StreamChoice(streams, cores=cores)  # type: ignore[arg-type]
    return await asyncio.to_thread(connect, address, secret, fields, 30.0, transport, arena.fd, choice)


@pytest.mark.parametrize(
    ("agents", "emulated", "workers", "streams", "used"),  # by a worker that has 8 cores for itself
    [
        ("tcp", True, "tcp", "auto", "tcp (4 streams)"),
        ("tcp", True, "tcp", 1, "tcp"),
        ("tcp", True, "tcp", 3, "tcp (3 streams)"),
        ("tcp", True, "tcp", 16, "tcp (16 streams)"),
        ("shm", True, "shm", 3, "shm"),
        ("auto", False, "auto", "auto", "shm"),
        ("auto", True, "auto", 2, "tcp (2 streams)"),
        pytest.param("ucx", True, "ucx", 3, "ucx", marks=UCX),
    ],
)
def test_versions_travel(agents: str, emulated: bool, workers: str, streams: int | str, used: str) -> None:
    async def body(agent: Agent, address: Address) -> None:
        with Rig(holders=0) as rig:
            connection = await join(address, workers, rig.own, streams, cores=8)
            assert connection.name == used
            rig.writer.add_holder(connection.detach(), connection.transport)
            for version in range(3):
                content = await asyncio.to_thread(rig.run, version % 2, EPOCH, version)
                slot = agent.arena.find(EPOCH, version)
                assert slot is not None and rig.restored(agent.arena, slot) == content[: rig.sent]
            rig.writer.cancel()
            await agent.port.retire_before(EPOCH + 1)

    with_agent(agents, emulated, body)


@pytest.mark.parametrize(
    ("transport", "streams"), [("tcp", 1), ("tcp", 3), ("shm", 1), pytest.param("ucx", 1, marks=UCX)]
)
def test_slots_are_sent_from_agent_to_agent(transport: str, streams: int) -> None:
    async def body(agent: Agent, address: Address) -> None:
        with Rig(holders=0) as rig:
            content = rig.run(0, EPOCH, 5)
            source = DataPort(SECRET, agent.said.append)
            await source.open("127.0.0.1")
            source.share(transport, True, StreamChoice(streams))
            source.enter_epoch(EPOCH)
            try:
                failures: list[str] = []
                source.send({"to": address, "rank": 3}, rig.own, EPOCH, 5, failures.append)
                while agent.arena.find(EPOCH, 5) is None and not failures:
                    await asyncio.sleep(0.01)
                assert failures == []
            finally:
                await source.close()
            slot = agent.arena.find(EPOCH, 5)
            assert slot is not None and rig.restored(agent.arena, slot) == content[: rig.sent]

    with_agent(transport, True, body)


def test_forced_shared_memory_says_what_is_missing() -> None:
    async def body(agent: Agent, address: Address) -> None:
        with pytest.raises(
            OSError, match=r"transport = 'shm': no agent of this job on this host.*need 'tcp' or 'auto'"
        ):
            await join(address, "shm", agent.arena)

    with_agent("tcp", True, body)


@pytest.mark.parametrize(
    ("transport", "streams"), [("tcp", 1), ("tcp", 3), ("shm", 1), pytest.param("ucx", 1, marks=UCX)]
)
def test_strangers_and_old_epochs_are_refused(transport: str, streams: int) -> None:
    async def body(agent: Agent, address: Address) -> None:
        with pytest.raises(ProtocolError, match="does not know the job's secret"):
            await join(address, transport, agent.arena, streams, secret=new_secret())
        with pytest.raises(ProtocolError, match="refused"):
            await join(address, transport, agent.arena, streams, epoch=EPOCH - 1)
        with pytest.raises(ProtocolError, match="refused"):
            await join(address, transport, agent.arena, streams, rank=4)
        with pytest.raises(ProtocolError, match="refused"):
            await join(address, transport, agent.arena, streams, rank=[3])
        assert any("without a rank" in line for line in agent.said)
        assert any("epoch 1 is over, this is 2" in line for line in agent.said)
        assert any("rank 4 has no arena here" in line for line in agent.said)

    with_agent(transport, True, body)


@UCX
def test_agent_without_ucx_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_port, "missing_for_ucx", lambda: "it is not there")

    async def body(agent: Agent, address: Address) -> None:
        with pytest.raises(ProtocolError, match="refused"):
            await join(address, "ucx", agent.arena)
        assert any("the peer wants to use UCX: it is not there" in line for line in agent.said)

    with_agent("auto", True, body)


def arenas_open() -> int:
    """Descriptors of arenas that this process has, those of earlier tests too."""
    opened = [path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(name.startswith("memfd:ff-arena") for name in opened)


@pytest.mark.parametrize("sent", [0, 2])
def test_one_descriptor_is_expected(sent: int) -> None:
    """Whoever proves to belong to the job and then hands over something else is refused; no descriptor is left open."""

    async def body(agent: Agent, address: Address) -> None:
        from ff_core.contract.auth import prove_data

        before = arenas_open()

        def talk() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(60)
                sock.connect(shared_name(address))

                def hand_over() -> None:
                    if sent:
                        socket.send_fds(sock, [b"F"], [agent.arena.fd] * sent)
                    else:
                        sock.sendall(b"F")

                prove_data(sock, "the agent", SECRET, {"rank": 3, "epoch": EPOCH}, hand_over)

        with pytest.raises(ProtocolError, match="refused"):
            await asyncio.to_thread(talk)
        assert arenas_open() == before, "what came is closed"
        assert any("instead of the one of the sender's arena" in line for line in agent.said)

    with_agent("shm", True, body)
