"""The line between an agent and its worker: order, descriptors, big messages, and either end going away."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from ff_core.contract.link import LINK_VARIABLE, AgentEnd, WorkerLink, pair
from ff_core.contract.messages import AGENT_TO_WORKER, WORKER_TO_AGENT, Message, make, pack
from ff_core.errors import ProtocolError

DEADLINE_S = 30.0
BLOB = os.urandom(600 * 1024).hex()  # does not fit a packet, compressed either


class Line:
    """An agent's end in this thread's loop and a worker's end."""

    def __init__(self) -> None:
        ours, theirs = pair()
        self.heard: list[Message] = []
        self.gone = asyncio.Event()
        self.news = asyncio.Event()
        self.agent = AgentEnd(ours, self._message, self.gone.set)
        self.worker_socket = theirs
        self.worker = WorkerLink(theirs)

    def _message(self, message: Message) -> None:
        self.heard.append(message)
        self.news.set()

    async def hear(self, count: int) -> list[Message]:
        async def enough() -> None:
            while len(self.heard) < count:
                self.news.clear()
                await self.news.wait()

        await asyncio.wait_for(enough(), DEADLINE_S)
        return self.heard

    async def receive(self) -> tuple[Message, list[int]]:
        return await asyncio.to_thread(self.worker.receive, DEADLINE_S)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test(), 2 * DEADLINE_S))


def test_order_both_ways() -> None:
    async def body() -> None:
        line = Line()
        for number in range(500):
            line.agent.send("may_leave", epoch=1, version=number)
            line.worker.send("leaving", rank=0, epoch=1, version=number, again=False)
            if number % 50 == 49:  # neither end reads while it writes here: leave room in the socket
                await line.hear(number + 1)
                for expected in range(number - 49, number + 1):
                    message, fds = await line.receive()
                    assert (message["version"], fds) == (expected, [])
        assert [message["version"] for message in line.heard] == list(range(500))
        line.agent.close()

    run(body)


def test_more_than_the_socket_holds_arrives_in_order() -> None:
    async def body() -> None:
        line = Line()
        for number in range(400):
            line.agent.send("preload", modules=[os.urandom(8000).hex()], calls=[number])
        for number in range(400):
            message, _ = await line.receive()
            assert message["calls"] == [number]
        line.agent.close()

    run(body)


def test_descriptors_travel_and_nothing_leaks() -> None:
    async def body() -> None:
        line = Line()
        before = {path.name for path in Path("/proc/self/fd").iterdir()}
        reader, writer = os.pipe()
        line.agent.send("slot_ready", (reader, writer), epoch=1)
        message, (reader2, writer2) = await line.receive()
        assert message["t"] == "slot_ready" and {reader2, writer2}.isdisjoint({reader, writer})
        assert not os.get_inheritable(reader2)
        os.write(writer2, b"through")
        assert os.read(reader, 7) == b"through"
        for fd in (reader, writer, reader2, writer2):
            os.close(fd)
        assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
        line.agent.close()

    run(body)


def test_compressible_messages_may_be_large() -> None:
    async def body() -> None:
        line = Line()
        modules = [f"package.module_{number % 7}" for number in range(40_000)]
        assert len(pack(make(WORKER_TO_AGENT, "preload", modules=modules, calls=[]))) > 500_000
        line.agent.send("preload", modules=modules, calls=[])
        line.worker.send("preload", modules=modules, calls=[])
        assert (await line.receive())[0]["modules"] == modules
        assert (await line.hear(1))[0]["modules"] == modules
        line.agent.close()

    run(body)


def test_too_large_is_an_error_of_the_sender() -> None:
    async def body() -> None:
        line = Line()
        for end in (line.agent, line.worker):
            with pytest.raises(ProtocolError, match=r"'preload' has \d+ bytes after compression, at most"):
                end.send("preload", modules=[BLOB], calls=[])
        line.worker.send("booted")
        assert (await line.hear(1)) == [{"t": "booted"}]
        line.agent.close()

    run(body)


def test_the_worker_is_gone() -> None:
    async def body() -> None:
        line = Line()
        line.worker.send("booted")
        line.worker_socket.close()
        await asyncio.wait_for(line.gone.wait(), DEADLINE_S)
        assert line.heard == [{"t": "booted"}], "what it said before still counts"
        line.agent.send("may_leave", epoch=1, version=1)  # into the void, without an error

    run(body)


def test_the_agent_is_gone() -> None:
    async def body() -> None:
        line = Line()
        line.agent.send("may_leave", epoch=1, version=1)
        line.agent.close()
        assert (await line.receive())[0]["version"] == 1
        with pytest.raises(EOFError):
            line.worker.receive(DEADLINE_S)
        with pytest.raises(OSError):
            line.worker.send("booted")

    run(body)


def test_serve_hands_over_and_ends_once() -> None:
    async def body() -> None:
        line = Line()
        heard: list[int] = []
        gone = threading.Event()
        line.worker.serve(lambda message, fds: heard.append(message["version"]), gone.set)
        for number in range(20):
            line.agent.send("may_leave", epoch=0, version=number)
        while len(heard) < 20:
            await asyncio.sleep(0.01)
        line.agent.close()
        assert await asyncio.to_thread(gone.wait, DEADLINE_S)
        assert heard == list(range(20))

    run(body)


BOOTED = pack(make(WORKER_TO_AGENT, "booted"))
SLOT_READY = pack(make(AGENT_TO_WORKER, "slot_ready", epoch=1))


@pytest.mark.parametrize("packet", [b"x", b"p", b"pnonsense", b"znonsense", b"q" + BOOTED, b"p" + SLOT_READY])
def test_nonsense_ends_the_line(packet: bytes) -> None:
    async def body() -> None:
        line = Line()
        line.worker_socket.send(packet)
        await asyncio.wait_for(line.gone.wait(), DEADLINE_S)
        assert not line.heard

    run(body)


@pytest.mark.parametrize(
    ("packet", "why"),
    [(b"pnonsense", "not"), (b"znonsense", "malformed packet"), (b"p" + BOOTED, "'booted' does not go from agent")],
)
def test_nonsense_from_the_agent_ends_serving(packet: bytes, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = pair()
    gone, heard = threading.Event(), []
    WorkerLink(theirs).serve(lambda message, fds: heard.append(message), gone.set)
    ours.send(packet)
    assert gone.wait(DEADLINE_S) and not heard
    assert "the line to the agent ends: " in (said := capfd.readouterr().err) and why in said
    ours.close()


def test_what_nobody_here_handles_ends_serving(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(message: Message, fds: list[int]) -> None:
        raise ProtocolError("not now")

    ours, theirs = pair()
    gone = threading.Event()
    WorkerLink(theirs).serve(refuse, gone.set)
    ours.send(b"p" + SLOT_READY)
    assert gone.wait(DEADLINE_S)
    assert "the line to the agent ends: not now" in capfd.readouterr().err
    ours.close()


def test_descriptors_of_a_refused_message_are_closed() -> None:
    ours, theirs = pair()
    before = len(list(Path("/proc/self/fd").iterdir()))
    socket.send_fds(ours, [b"p" + BOOTED], [0, 1])
    with pytest.raises(ProtocolError):
        WorkerLink(theirs).receive(DEADLINE_S)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    ours.close()
    theirs.close()


def test_no_message_in_time() -> None:
    _, theirs = pair()
    with pytest.raises(TimeoutError):
        WorkerLink(theirs).receive(0.05)


def test_from_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LINK_VARIABLE, raising=False)
    assert WorkerLink.from_env() is None
    ours, theirs = pair()
    os.set_inheritable(theirs.fileno(), True)
    monkeypatch.setenv(LINK_VARIABLE, str(theirs.detach()))
    link = WorkerLink.from_env()
    assert link is not None and LINK_VARIABLE not in os.environ, "a child of the worker must not take it for its own"
    link.send("booted")
    assert ours.recv(100)[:1] == b"p"
    ours.close()
