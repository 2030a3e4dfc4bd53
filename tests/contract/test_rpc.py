"""The stream between agents and controller: both sides prove the secret, addresses are checked, messages keep their
order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ff_core.contract import rpc
from ff_core.contract.auth import new_secret
from ff_core.contract.messages import AGENT_TO_CONTROLLER, CONTROLLER_TO_AGENT, make, pack
from ff_core.errors import ProtocolError

DEADLINE_S = 30.0
HELLO: dict[str, Any] = {
    "node": 1,
    "host_id": "h",
    "hostname": "host",
    "data_host": "127.0.0.1",
    "data_port": 1,
    "free_bytes": 1,
    "pid": 1,
}


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 2 * DEADLINE_S)

    asyncio.run(bounded())


class Controller:
    """Server side: does the handshake with `secret`, answers with `answering`, and echoes."""

    def __init__(self, secret: bytes, answering: bytes | None = None) -> None:
        self.secret, self.answering = secret, answering
        self.heard: list[dict[str, Any]] = []
        self.error: BaseException | None = None

    async def __aenter__(self) -> Controller:
        self.server, port = await rpc.serve("127.0.0.1", 0, self.session)
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(0)

    async def session(self, stream: rpc.Stream) -> None:
        try:
            _, proof = await rpc.challenge(stream, self.secret)
        except ProtocolError as error:
            self.error = error
            return
        await stream.send_now("welcome", proof=self.answering or proof, job={"nodes": 2}, node=1)
        writer = asyncio.create_task(stream.pump())
        try:
            while (message := await stream.receive()) is not None:
                self.heard.append(message)
                stream.send("w", epoch=1, version=len(self.heard), interval=1, pause=False)
        except ProtocolError as error:
            self.error = error
        stream.finish()
        await writer


def test_handshake_and_order() -> None:
    async def body() -> None:
        secret = new_secret()
        async with Controller(secret) as controller:
            channel, stream, welcome = await rpc.connect(controller.address, secret, HELLO, DEADLINE_S)
            assert welcome["job"] == {"nodes": 2}
            pump = asyncio.create_task(stream.pump())
            for number in range(300):
                stream.send("leaving", rank=0, epoch=0, version=number, again=False)
            for number in range(300):
                message = await stream.receive()
                assert message is not None and message["version"] == number + 1
            assert [message["version"] for message in controller.heard] == list(range(300))
            pump.cancel()
            await channel.close()

    run(body)


def test_a_controller_with_nothing_to_say_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nodes come or scripts start. Pings follow each other quickly here, so that six seconds are long."""
    quick = [("grpc.keepalive_time_ms", 400) if name == "grpc.keepalive_time_ms" else (name, value)
             for name, value in rpc._OPTIONS]  # fmt: skip
    monkeypatch.setattr(rpc, "_OPTIONS", quick)

    async def body() -> None:
        secret = new_secret()
        async with Controller(secret) as controller:
            channel, stream, _ = await rpc.connect(controller.address, secret, HELLO, DEADLINE_S)
            pump = asyncio.create_task(stream.pump())
            await asyncio.sleep(6)
            stream.send("leaving", rank=0, epoch=0, version=1, again=False)
            message = await stream.receive()
            assert message is not None and message["version"] == 1
            pump.cancel()
            await channel.close()

    run(body)


def test_an_agent_with_another_secret() -> None:
    async def body() -> None:
        async with Controller(new_secret()) as controller:
            with pytest.raises(ProtocolError, match=r"refused: node 1 .* does not know the job's secret"):
                await rpc.connect(controller.address, new_secret(), HELLO, DEADLINE_S)
            while controller.error is None:  # the refusal has left before
                await asyncio.sleep(0.01)
            assert isinstance(controller.error, ProtocolError)

    run(body)


def test_a_controller_with_another_secret() -> None:
    async def body() -> None:
        secret = new_secret()
        async with Controller(secret, answering=b"p" * 32) as controller:
            with pytest.raises(ProtocolError, match="does not know the job's secret"):
                await rpc.connect(controller.address, secret, HELLO, DEADLINE_S)

    run(body)


def test_something_else_than_a_hello() -> None:
    async def body() -> None:
        async with Controller(new_secret()) as controller:
            async with rpc.grpc.aio.insecure_channel(controller.address) as channel:
                call = channel.stream_stream(f"/{rpc.SERVICE}/{rpc.METHOD}")()
                stream = rpc.Stream(call.read, call.write, sends=AGENT_TO_CONTROLLER, receives=CONTROLLER_TO_AGENT)
                opening = await stream.receive()
                assert opening is not None and opening["t"] == "challenge"
                await stream.send_now("beat", count=1, free_bytes=1, progress={})
                assert await stream.receive() is None
            assert isinstance(controller.error, ProtocolError) and "first message must be hello" in str(
                controller.error
            )

    run(body)


def test_malformed_bytes() -> None:
    async def body() -> None:
        async with Controller(new_secret()) as controller:
            async with rpc.grpc.aio.insecure_channel(controller.address) as channel:
                call = channel.stream_stream(f"/{rpc.SERVICE}/{rpc.METHOD}")()
                await call.read()
                await call.write(b"\xc1 nonsense")
                while controller.error is None:
                    await asyncio.sleep(0.01)
            assert "not msgpack" in str(controller.error)

    run(body)


def test_a_message_that_goes_the_other_way() -> None:
    async def body() -> None:
        secret = new_secret()
        async with Controller(secret) as controller:
            channel, stream, _ = await rpc.connect(controller.address, secret, HELLO, DEADLINE_S)
            with pytest.raises(ProtocolError, match="message 'w' does not go from agent to controller"):
                stream.send("w", epoch=1, version=1, interval=1, pause=False)
            await stream._write(pack(make(CONTROLLER_TO_AGENT, "w", epoch=1, version=1, interval=1, pause=False)))
            assert await stream.receive() is None
            assert "message 'w' does not go from agent to controller" in str(controller.error)
            await channel.close()

    run(body)


def test_large_messages() -> None:
    async def body() -> None:
        secret = new_secret()
        async with Controller(secret) as controller:
            channel, stream, _ = await rpc.connect(controller.address, secret, HELLO, DEADLINE_S)
            pump = asyncio.create_task(stream.pump())
            stream.send("persisted", rank=0, path="x" * (40 << 20), version=1)
            assert await stream.receive() is not None
            assert len(controller.heard[0]["path"]) == 40 << 20
            pump.cancel()
            await channel.close()

    run(body)


def test_nobody_there() -> None:
    async def body() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match=r"no controller at 127.0.0.1:\d+ within 0.3 s"):
                await rpc.connect(f"127.0.0.1:{unused.getsockname()[1]}", new_secret(), HELLO, 0.3)

    run(body)


def test_a_port_that_is_taken() -> None:
    async def session(stream: rpc.Stream) -> None:
        raise AssertionError("nobody connects here")

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
                await rpc.serve("127.0.0.1", port, session)

    run(body)


def test_two_controllers_on_one_port() -> None:
    async def body() -> None:
        async with Controller(new_secret()) as controller:
            with pytest.raises(OSError, match="the port is taken"):
                await rpc.serve("127.0.0.1", int(controller.address.rpartition(":")[2]), controller.session)

    run(body)


def test_the_end_of_the_stream() -> None:
    async def body() -> None:
        secret = new_secret()
        async with Controller(secret) as controller:
            channel, stream, _ = await rpc.connect(controller.address, secret, HELLO, DEADLINE_S)
            await controller.server.stop(0)
            with pytest.raises(rpc.grpc.RpcError):
                while await stream.receive() is not None:
                    pass
            await channel.close()

    run(body)
