"""Connecting to the agent that holds a replica, or a newcomer's arena: by the best transport that both sides have.

An agent that others on its host may reach through shared memory listens, besides its data port, on a Unix socket that
is named after the port. Whoever finds it there is on the same host, in the same network namespace: that is how the
automatic choice is made. The same challenge and response as on the data port come first; then the memory file of the
sender's arena is handed over, from which the holder will copy.

UCX begins as a connection to the data port like TCP; the hello says what it is for. Whether the two sides reach each
other that way is known only when the engine has tried, so it is used only where the configuration asks for it.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any

from ff_core.contract.auth import connect_data, connect_streams, prove_data
from ff_core.copy.transports import StreamChoice, candidates
from ff_core.errors import ProtocolError

_HERE = b"F"


def shared_name(address: tuple[str, int]) -> str:
    """The Unix socket (abstract: it leaves nothing behind) beside the data port at `address`."""
    return f"\0fftrain-{address[0]}-{address[1]}"


def listen_shared(address: tuple[str, int]) -> socket.socket:
    """A non-blocking listener there. OSError: the name is taken."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(shared_name(address))
        listener.listen(256)
        listener.setblocking(False)
        return listener
    except BaseException:
        listener.close()
        raise


@dataclass(frozen=True, slots=True)
class Connection:
    """What connect() brings: connected, authenticated sockets (several: the streams of one TCP connection, in order)
    and the transport that they are for, "shm", "ucx" or "tcp"."""

    socks: list[socket.socket]
    transport: str

    @property
    def name(self) -> str:
        """For people."""
        return self.transport if len(self.socks) == 1 else f"{self.transport} ({len(self.socks)} streams)"

    def detach(self) -> list[int]:
        """The descriptors, which are the caller's now."""
        return [sock.detach() for sock in self.socks]

    def shutdown(self) -> None:
        """End what anybody does with these sockets or duplicates of them."""
        for sock in self.socks:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


def connect(
    address: tuple[str, int],
    secret: bytes,
    hello: dict[str, Any],
    timeout_s: float,
    transport: str,
    arena_fd: int,
    streams: StreamChoice,
) -> Connection:
    """Reach the agent at `address`.

    transport: the configuration's. arena_fd: the memory file that the slots to be sent lie in. streams: for TCP.
    Raises OSError (not reachable this way, and how else), ProtocolError (the other side refused or does not know the
    secret).
    """
    allowed = candidates(transport)
    if "shm" in allowed:
        try:
            return Connection([_connect_shared(address, secret, hello, timeout_s, arena_fd)], "shm")
        except OSError as error:
            if "tcp" not in allowed:
                raise ConnectionRefusedError(
                    f"transport = {transport!r}: no agent of this job on this host (and in this network namespace) is "
                    f"behind {address[0]}:{address[1]} ({error.strerror or error}); other hosts need 'tcp' or 'auto'"
                ) from error
    if "ucx" in allowed:
        return Connection([connect_data(address, secret, {**hello, "transport": "ucx"}, timeout_s)], "ucx")

    def count(first: socket.socket) -> int:
        return streams.count(first.getsockname()[0], first.getpeername()[0])

    return Connection(connect_streams(address, secret, hello, timeout_s, count), "tcp")


def _connect_shared(
    address: tuple[str, int], secret: bytes, hello: dict[str, Any], timeout_s: float, arena_fd: int
) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(shared_name(address))

        def hand_over() -> None:
            socket.send_fds(sock, [_HERE], [arena_fd])

        prove_data(sock, f"the agent behind {address[0]}:{address[1]}", secret, hello, hand_over)
        sock.settimeout(None)
        return sock
    except BaseException:
        sock.close()
        raise


async def accept_arena(sock: socket.socket, timeout_s: float) -> int:
    """The peer's memory file, from a non-blocking Unix socket; the caller's to close. ProtocolError, TimeoutError."""

    async def receive() -> int:
        loop = asyncio.get_running_loop()
        size = array.array("i").itemsize
        while True:
            try:
                data, ancillary, flags, _ = sock.recvmsg(1, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                ready = asyncio.Event()
                loop.add_reader(sock, ready.set)
                try:
                    await ready.wait()
                finally:
                    loop.remove_reader(sock)
        found = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(payload[: len(payload) - len(payload) % size])
        if data == _HERE and len(found) == 1 and not flags & socket.MSG_CTRUNC:
            return found[0]
        for fd in found:
            os.close(fd)
        raise ProtocolError(f"{len(found)} descriptors instead of the one of the sender's arena")

    return await asyncio.wait_for(receive(), timeout_s)
