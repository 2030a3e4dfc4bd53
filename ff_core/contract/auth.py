"""Proof that the other side knows the job's secret, without sending it (HMAC-SHA256 over both sides' nonces).

Used by every connection of ours: the controller's gRPC stream carries the proofs as messages, the data port as bytes.
An inherited socketpair (worker and its agent) needs none: nobody else can hold its ends.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from ff_core.errors import ProtocolError

NONCE_BYTES = 16
PROOF_BYTES = 32
GROUP_BYTES = 16  # what the streams of one connection have in common
_MAGIC = b"FFD1"
_MAX_HELLO = 4096
_OVER = object()


def new_secret() -> bytes:
    """A fresh secret for one job."""
    return secrets.token_bytes(32)


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def proof(secret: bytes, side: str, theirs: bytes, mine: bytes, context: bytes = b"") -> bytes:
    """What `side` ("client" or "server") answers to the other's nonce; binds both nonces and `context`."""
    return hmac.digest(
        secret, b"|".join((side.encode(), theirs.hex().encode(), mine.hex().encode(), context)), "sha256"
    )


def verify(secret: bytes, side: str, theirs: bytes, mine: bytes, given: bytes, context: bytes = b"") -> bool:
    """True if `given` is the proof of the *other* side, which calls `mine` its "theirs"."""
    return hmac.compare_digest(proof(secret, side, theirs, mine, context), given)


def connect_data(address: tuple[str, int], secret: bytes, hello: dict[str, Any], timeout_s: float) -> socket.socket:
    """Connect to an agent's data port, prove ourselves, say `hello`; returns the blocking socket, ready for the engine.

    Raises OSError (not reachable in time) or ProtocolError (the other side refused or does not know the secret).
    """
    return connect_streams(address, secret, hello, timeout_s, lambda _: 1)[0]


def connect_streams(
    address: tuple[str, int],
    secret: bytes,
    hello: dict[str, Any],
    timeout_s: float,
    count: Callable[[socket.socket], int],
) -> list[socket.socket]:
    """The same with all streams of one connection, stream 0 first: each is authenticated by itself, and what each of
    them says also tells that they belong together. They wait for the other side together, not one after the other.

    count: how many, given the first one, which is connected but not authenticated.
    """
    socks = [_dial(address, timeout_s)]
    try:
        several = count(socks[0])
        socks += [_dial(address, timeout_s) for _ in range(1, several)]
        group = {"group": secrets.token_bytes(GROUP_BYTES), "streams": several} if several > 1 else {}
        hellos = [{**hello, **group, "stream": number} if group else hello for number in range(several)]
        peer = f"data port {address[0]}:{address[1]}"
        talks = [_prove(sock, peer, secret, said) for sock, said in zip(socks, hellos, strict=True)]
        while talks:
            talks = [talk for talk in talks if next(talk, _OVER) is not _OVER]
        for sock in socks:
            sock.settimeout(None)
        return socks
    except BaseException:
        for sock in socks:
            sock.close()
        raise


def _dial(address: tuple[str, int], timeout_s: float) -> socket.socket:
    sock = socket.create_connection(address, timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def prove_data(
    sock: socket.socket, peer: str, secret: bytes, hello: dict[str, Any], hand_over: Callable[[], None] | None = None
) -> None:
    """The client's side of the handshake on a connected socket, to the end. `hand_over` sends what goes with the hello;
    it is called when `peer` has proved itself.

    Raises OSError or ProtocolError, which names `peer`.
    """
    for _ in _prove(sock, peer, secret, hello, hand_over):
        pass


def _prove(
    sock: socket.socket, peer: str, secret: bytes, hello: dict[str, Any], hand_over: Callable[[], None] | None = None
) -> Iterator[None]:
    """prove_data, in steps: each begins with waiting for the peer, so that several connections can wait together."""
    mine = new_nonce()
    sock.sendall(_MAGIC + mine)
    yield
    answer = _receive_exactly(sock, NONCE_BYTES + PROOF_BYTES)
    theirs, given = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
    if not verify(secret, "server", mine, theirs, given):
        raise ProtocolError(f"{peer} does not know the job's secret")
    body = msgpack.packb(hello, use_bin_type=True)
    sock.sendall(proof(secret, "client", theirs, mine, body) + struct.pack("<I", len(body)) + body)
    if hand_over is not None:
        hand_over()
    yield
    if _receive_exactly(sock, 1) != b"+":
        raise ProtocolError(f"{peer} refused {hello}")


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ProtocolError("connection closed during the handshake")
        data += part
    return data


async def accept_data(sock: socket.socket, secret: bytes, timeout_s: float) -> dict[str, Any]:
    """Server side of `connect_data` on a non-blocking socket: returns the peer's verified hello.

    The caller decides and answers with `answer_data`. Raises ProtocolError or TimeoutError; the caller closes the
    socket.
    """
    loop = asyncio.get_running_loop()

    async def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await loop.sock_recv(sock, count - len(data))
            if not part:
                raise ProtocolError("connection closed during the handshake")
            data += part
        return data

    async def talk() -> dict[str, Any]:
        opening = await exactly(len(_MAGIC) + NONCE_BYTES)
        if not opening.startswith(_MAGIC):
            raise ProtocolError("not one of ours")
        theirs, mine = opening[len(_MAGIC) :], new_nonce()
        await loop.sock_sendall(sock, mine + proof(secret, "server", theirs, mine))
        given = await exactly(PROOF_BYTES)
        (length,) = struct.unpack("<I", await exactly(4))
        if length > _MAX_HELLO:
            raise ProtocolError(f"hello of {length} bytes")
        body = await exactly(length)
        if not verify(secret, "client", mine, theirs, given, body):
            raise ProtocolError("peer does not know the job's secret")
        try:
            hello = msgpack.unpackb(body, raw=False)
        except Exception as error:  # msgpack raises many kinds
            raise ProtocolError(f"hello is not msgpack: {error}") from error
        if not isinstance(hello, dict):
            raise ProtocolError("malformed hello")
        return hello

    return await asyncio.wait_for(talk(), timeout_s)


async def answer_data(sock: socket.socket, accepted: bool) -> None:
    """Tell the peer of `accept_data` whether its hello is accepted."""
    await asyncio.get_running_loop().sock_sendall(sock, b"+" if accepted else b"-")
