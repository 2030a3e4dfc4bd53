"""Streams of one connection at a data port: in any order, incomplete, twice, with another hello, too many."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ff_core.agent import data_port, gathering
from ff_core.agent.gathering import Gathering
from ff_core.contract.auth import connect_data, new_secret
from ff_core.errors import ProtocolError
from tests.agent.test_data_port import EPOCH, LAYOUT, SECRET, Address, Agent, with_agent
from tests.copy.frames import ACK, CHUNK, Frame, conversation, receive
from tests.copy.rig import eventually

HELLO = {"rank": 3, "kind": "replica", "epoch": EPOCH}
TOKEN = b"sixteen bytes ok"


def hello(number: Any, streams: Any = 3, token: Any = TOKEN, **other: Any) -> dict[str, Any]:
    return {**HELLO, "group": token, "streams": streams, "stream": number, **other}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def gather(body: Callable[[Gathering], Awaitable[None]], patience_s: float = 60.0) -> None:
    async def run() -> None:
        await body(Gathering(patience_s))

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_in_any_order(order: tuple[int, ...]) -> None:
    async def body(gathering: Gathering) -> None:
        socks = [socket.socket() for _ in range(3)]
        tasks = []
        for number in order:
            tasks.append(asyncio.create_task(gathering.join(socks[number], hello(number))))
            await asyncio.sleep(0)
        found = await asyncio.gather(*tasks)
        assert found == [socks, None, None]
        for sock in socks:
            sock.close()

    gather(body)


def test_one_stream_is_complete_at_once() -> None:
    async def body(gathering: Gathering) -> None:
        with socket.socket() as sock:
            assert await gathering.join(sock, HELLO) == [sock]

    gather(body)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (hello(0, token="sixteen letters!"), "group is 'sixteen letters!', expected 16 bytes"),
        (hello(0, token=b"short"), "group is b'short'"),
        (hello(0, streams=1), "streams is 1, allowed are 2 to 16"),
        (hello(0, streams=17), "streams is 17"),
        (hello(0, streams=True), "streams is True"),
        (hello(0, streams=None), "streams is None"),
        (hello(3), "stream is 3, allowed are 0 to 2"),
        (hello(-1), "stream is -1"),
        (hello("0"), "stream is '0'"),
    ],
)
def test_malformed(said: dict[str, Any], message: str) -> None:
    async def body(gathering: Gathering) -> None:
        with socket.socket() as sock, pytest.raises(ProtocolError, match=message):
            await gathering.join(sock, said)

    gather(body)


def test_what_does_not_fit_the_others() -> None:
    """It is refused; those that wait are left alone."""

    async def body(gathering: Gathering) -> None:
        socks = [socket.socket() for _ in range(3)]
        first = asyncio.create_task(gathering.join(socks[0], hello(0)))
        await asyncio.sleep(0)
        with socket.socket() as other:
            for said in (hello(0), hello(1, streams=4), hello(1, rank=4), hello(1, epoch=9), hello(1, more=1)):
                with pytest.raises(ProtocolError, match="does not fit the others"):
                    await gathering.join(other, said)
        assert [await gathering.join(socks[number], hello(number)) for number in (2, 1)] == [None, None]
        assert await first == socks
        for sock in socks:
            sock.close()

    gather(body)


def test_incomplete_groups_are_closed() -> None:
    async def body(gathering: Gathering) -> None:
        first, second = socket.socket(), socket.socket()
        task = asyncio.create_task(gathering.join(first, hello(2)))
        await asyncio.sleep(0)
        assert await gathering.join(second, hello(1)) is None
        with pytest.raises(ProtocolError, match=r"of 3 streams only these came within 0.2 s: 1, 2"):
            await task
        assert second.fileno() < 0 and first.fileno() >= 0, "the caller closes its own"
        first.close()

    gather(body, 0.2)


def test_groups_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_MOST_GROUPS", 2)

    async def body(gathering: Gathering) -> None:
        with socket.socket() as sock:
            tokens = [bytes([number] * 16) for number in range(3)]
            tasks = [asyncio.create_task(gathering.join(sock, hello(0, token=token))) for token in tokens[:2]]
            await asyncio.sleep(0)
            with pytest.raises(ProtocolError, match="2 connections are waiting"):
                await gathering.join(sock, hello(0, token=tokens[2]))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            last = asyncio.create_task(gathering.join(sock, hello(0, token=tokens[2])))
            await asyncio.sleep(0)
            assert not last.done()
            last.cancel()

    gather(body)


def dial(address: Address, said: dict[str, Any]) -> asyncio.Future[socket.socket]:
    return asyncio.ensure_future(asyncio.to_thread(connect_data, address, SECRET, said, 30.0))


def test_half_a_connection_at_a_data_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed after a while with one line; what a newer connection of the same rank brought stays; nothing leaks."""
    monkeypatch.setattr(data_port, "_HANDSHAKE_S", 1.0)

    async def body(agent: Agent, address: Address) -> None:
        before = descriptors()
        halves = [dial(address, hello(number)) for number in (0, 2)]
        await asyncio.sleep(0.1)
        socks = await asyncio.gather(*[dial(address, hello(number, token=TOKEN[::-1])) for number in range(3)])
        payload = bytes(range(250)) * 400
        for frame in conversation(payload, LAYOUT.chunk_bytes, EPOCH, 7, b"s"):
            socks[1 + frame.index % 2 if frame.type == CHUNK else 0].sendall(frame.encode())
        assert await asyncio.to_thread(receive, socks[0]) == Frame(ACK, EPOCH, 7)
        for half in await asyncio.gather(*halves, return_exceptions=True):
            assert isinstance(half, ProtocolError)
        assert [line for line in agent.said if "streams" in line] == agent.said
        assert len(agent.said) == 1 and "of 3 streams only these came within 1 s: 0, 2" in agent.said[0]
        assert agent.arena.find(EPOCH, 7) is not None
        for sock in socks:
            sock.close()
        await asyncio.to_thread(eventually, lambda: descriptors() <= before, "descriptors of both connections closed")

    with_agent("tcp", True, body)


def test_streams_of_strangers_do_not_count() -> None:
    async def body(agent: Agent, address: Address) -> None:
        mine = [dial(address, hello(number)) for number in (0, 1)]
        with pytest.raises(ProtocolError, match="does not know"):
            await asyncio.to_thread(connect_data, address, new_secret(), hello(2), 30.0)
        assert not any(task.done() for task in mine)
        mine.append(dial(address, hello(2)))
        for sock in await asyncio.gather(*mine):
            sock.close()

    with_agent("tcp", True, body)


def test_peer_that_left_before_its_last_stream_came() -> None:
    """It may be connected anew already: that connection stays."""

    async def body(agent: Agent, address: Address) -> None:
        def leave() -> None:
            with socket.create_connection(address) as sock:
                # As connect_data, but without waiting for the answer.
                from ff_core.contract import auth

                talk = auth._prove(sock, "port", SECRET, hello(0))
                next(talk)
                next(talk)

        await asyncio.to_thread(leave)
        socks = await asyncio.gather(*[dial(address, hello(number, token=TOKEN[::-1])) for number in range(3)])
        late = await asyncio.gather(*[dial(address, hello(number)) for number in (1, 2)], return_exceptions=True)
        assert all(isinstance(error, ProtocolError) for error in late), late
        assert any("the peer has gone meanwhile" in line for line in agent.said)
        frames = conversation(b"", LAYOUT.chunk_bytes, EPOCH, 1, b"s")
        socks[0].sendall(frames[0].but(data=struct.pack("<QQ", LAYOUT.sent_bytes, LAYOUT.chunk_bytes)).encode())
        await asyncio.to_thread(eventually, lambda: agent.arena.slot_info(0).state.name == "WRITING")
        for sock in socks:
            sock.close()

    with_agent("tcp", True, body)


def test_only_tcp_has_several_streams() -> None:
    async def body(agent: Agent, address: Address) -> None:
        with pytest.raises(ProtocolError, match="refused"):
            await dial(address, hello(0, transport="ucx"))

    with_agent("auto", False, body)
