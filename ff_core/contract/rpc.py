"""The stream between agents and controller: one bidirectional gRPC call per agent, msgpack messages, HMAC proofs
both ways first.

Generic handlers, no generated code. `Stream` is what both ends see once the handshake is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from ff_core.contract.auth import new_nonce, proof, verify
from ff_core.contract.messages import (
    AGENT_TO_CONTROLLER,
    CONTROLLER_TO_AGENT,
    MAX_MESSAGE_BYTES,
    Message,
    Route,
    make,
    pack,
    unpack,
)
from ff_core.errors import ProtocolError

SERVICE, METHOD = "fftrain.Control", "Session"
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + 4096),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 4096),
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 10000),
    ("grpc.http2.max_pings_without_data", 0),
    # A controller may have nothing to say for minutes: nodes come, scripts start. It would close the connection for
    # the third ping in which it said nothing: by default one in five minutes is welcome.
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
]
_HANDSHAKE_S = 20.0


class WrongSecretError(ProtocolError):
    """An agent does not know the job's secret."""


class RefusedError(ProtocolError):
    """A controller does not let an agent in. term: a deputy would, if the agent joined it with this one; 0: never."""

    term = 0


class Stream:
    """Messages in order, both ways. `send` never blocks; `receive` returns None at the end of the stream.

    sends, receives: the directions; what does not go that way is a ProtocolError at both ends.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[None]],
        *,
        sends: Route,
        receives: Route,
    ) -> None:
        self._read, self._write = read, write
        self._sends, self._receives = sends, receives
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def send(self, name: str, **fields: Any) -> None:
        self._queue.put_nowait(pack(make(self._sends, name, **fields)))

    async def send_now(self, name: str, **fields: Any) -> None:
        """For the handshake, before `pump` runs."""
        await self._write(pack(make(self._sends, name, **fields)))

    async def receive(self) -> Message | None:
        data = await self._read()
        if not isinstance(data, bytes):  # grpc.aio.EOF
            return None
        return unpack(self._receives, data)

    async def pump(self) -> None:
        """Write queued messages until `finish`."""
        while (data := await self._queue.get()) is not None:
            await self._write(data)

    def finish(self) -> None:
        self._queue.put_nowait(None)


async def serve(host: str, port: int, session: Callable[[Stream], Awaitable[None]]) -> tuple[grpc.aio.Server, int]:
    """Listen; `session` runs for every call. Returns the server and its port. Raises OSError naming the address if
    it is taken."""

    async def handle(_: Any, context: grpc.aio.ServicerContext) -> None:
        await session(Stream(context.read, context.write, sends=CONTROLLER_TO_AGENT, receives=AGENT_TO_CONTROLLER))

    server = grpc.aio.server(options=_OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise OSError(f"cannot listen on {host}:{port}: the port is taken or the address is not of this machine")
    await server.start()
    return server, bound


async def challenge(stream: Stream, secret: bytes) -> tuple[Message, bytes]:
    """Server side: returns the agent's verified hello and the nonce to prove ourselves against. Raises
    ProtocolError."""
    mine = new_nonce()
    await stream.send_now("challenge", nonce=mine)
    hello = await asyncio.wait_for(stream.receive(), _HANDSHAKE_S)
    if hello is None or hello["t"] != "hello":
        raise ProtocolError("an agent's first message must be hello")
    if not verify(secret, "client", mine, hello["nonce"], hello["proof"]):
        who = f"node {hello['node']} ({hello['hostname']})"
        reason = (
            f"{who} does not know the job's secret: \"secret\" in the \"ff_failover\" block (or in the file of "
            "--ff-config) must be the same on all nodes"
        )
        await stream.send_now("refused", reason=reason)
        raise WrongSecretError(reason)
    return hello, proof(secret, "server", hello["nonce"], mine)


async def ask(address: str, secret: bytes, hello: dict[str, Any], timeout_s: float) -> Message:
    """Connect, prove ourselves, and have one question answered: the answer, from whoever knows the secret. `hello` says
    what is asked; how long the answer takes is not bounded. Raises as `connect`."""
    channel, _, answer = await _introduced(address, secret, hello, timeout_s, "drained")
    await channel.close()
    return answer


async def connect(
    address: str, secret: bytes, hello: dict[str, Any], timeout_s: float
) -> tuple[grpc.aio.Channel, Stream, Message]:
    """Agent side: connect, prove ourselves, be sure of the controller. Returns channel, stream and its welcome, which
    comes when the job starts.

    Raises ProtocolError (refused, wrong secret) or OSError (not reachable within timeout_s).
    """
    return await _introduced(address, secret, hello, timeout_s, "welcome")


async def _introduced(
    address: str, secret: bytes, hello: dict[str, Any], timeout_s: float, wanted: str
) -> tuple[grpc.aio.Channel, Stream, Message]:
    channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    try:
        await asyncio.wait_for(channel.channel_ready(), timeout_s)
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(wait_for_ready=True)
        stream = Stream(call.read, call.write, sends=AGENT_TO_CONTROLLER, receives=CONTROLLER_TO_AGENT)
        opening = await asyncio.wait_for(stream.receive(), _HANDSHAKE_S)
        if opening is None or opening["t"] != "challenge":
            raise ProtocolError(f"{address} is not a controller")
        mine = new_nonce()
        ours = proof(secret, "client", opening["nonce"], mine)
        await stream.send_now("hello", proof=ours, nonce=mine, **hello)
        answer = await stream.receive()
        if answer is None or answer["t"] != wanted:
            refused = (ProtocolError if answer is None else RefusedError)(
                f"the controller at {address} refused: {(answer or {}).get('reason', 'connection closed')}"
            )
            if isinstance(refused, RefusedError):
                refused.term = (answer or {}).get("term") or 0
            raise refused
        if not verify(secret, "server", mine, opening["nonce"], answer["proof"]):
            raise ProtocolError(f"the controller at {address} does not know the job's secret")
        return channel, stream, answer
    except asyncio.TimeoutError:
        await channel.close()
        raise OSError(f"no controller at {address} within {timeout_s:g} s") from None
    except BaseException:
        await channel.close()
        raise
