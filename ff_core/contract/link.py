"""The line between an agent and one of its workers: an inherited SOCK_SEQPACKET socketpair, one packet a message.

Packets carry descriptors (status page, eventfd, arena) beside a message. Large messages are compressed; a packet is
at most `_MAX_PACKET` bytes. The agent's end is asyncio (`AgentEnd`), the worker's end blocking and thread-safe
(`WorkerLink`).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ff_core.contract.messages import (
    AGENT_TO_WORKER,
    MAX_MESSAGE_BYTES,
    WORKER_TO_AGENT,
    Message,
    Route,
    make,
    pack,
    unpack,
)
from ff_core.errors import ProtocolError

LINK_VARIABLE = "FF_LINK_FD"
_MAX_PACKET = 160 * 1024
_COMPRESS_ABOVE = 32 * 1024
_MAX_FDS = 8


def pair() -> tuple[socket.socket, socket.socket]:
    """(agent's end, worker's end). The worker's end must be passed to the child and closed in the agent."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _encode(message: Message) -> bytes:
    body = pack(message)
    packet = b"z" + zlib.compress(body, 1) if len(body) > _COMPRESS_ABOVE else b"p" + body
    if len(packet) > _MAX_PACKET:
        raise ProtocolError(
            f"message {message['t']!r} has {len(packet)} bytes after compression, at most {_MAX_PACKET}"
        )
    return packet


def _decode(route: Route, packet: bytes) -> Message:
    kind, body = packet[:1], packet[1:]
    if kind == b"z":
        try:
            body = zlib.decompressobj().decompress(body, MAX_MESSAGE_BYTES + 1)
        except zlib.error as error:
            raise ProtocolError(f"malformed packet: {error}") from error
    elif kind != b"p":
        raise ProtocolError("malformed packet")
    return unpack(route, body)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    size = array.array("i").itemsize
    packet, ancillary, flags, _ = sock.recvmsg(
        _MAX_PACKET + 1, socket.CMSG_SPACE(_MAX_FDS * size), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(data[: len(data) - len(data) % size])
            fds.extend(received)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise ProtocolError("truncated packet")
    return packet, fds


def _send(sock: socket.socket, packet: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    sock.sendmsg([packet], ancillary)


class WorkerLink:
    """The worker's end. `receive` serves the bootstrap; `serve` then hands every message to a callback in its own
    thread.

    sends, receives: the directions. A test that plays the agent turns them round.
    """

    def __init__(
        self, sock: socket.socket, *, sends: Route = WORKER_TO_AGENT, receives: Route = AGENT_TO_WORKER
    ) -> None:
        self._sock, self._sends, self._receives = sock, sends, receives
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @classmethod
    def from_env(cls) -> WorkerLink | None:
        """The link that the agent passed on, or None when this process was not started by an agent."""
        text = os.environ.pop(LINK_VARIABLE, None)
        if text is None:
            return None
        sock = socket.socket(fileno=int(text))
        os.set_inheritable(sock.fileno(), False)
        return cls(sock)

    def send(self, name: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Send one message; any thread. Raises OSError when the agent is gone."""
        packet = _encode(make(self._sends, name, **fields))
        with self._lock:
            _send(self._sock, packet, fds)

    def receive(self, timeout_s: float | None = None) -> tuple[Message, list[int]]:
        """Next message and its descriptors (now ours). TimeoutError after timeout_s, EOFError when the agent is gone,
        ProtocolError for what it must not send."""
        if not select.select([self._sock], [], [], timeout_s)[0]:
            raise TimeoutError("no message from the agent")
        packet, fds = _receive(self._sock)
        if not packet:
            raise EOFError("the agent is gone")
        try:
            return _decode(self._receives, packet), fds
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise

    def pending(self) -> bool:
        """Whether `receive` would return at once. Before `serve` only."""
        return bool(select.select([self._sock], [], [], 0)[0])

    def serve(self, on_message: Callable[[Message, list[int]], None], on_gone: Callable[[], None]) -> None:
        """Hand all further messages to `on_message` in a daemon thread; `on_gone` once the agent is gone.

        A ProtocolError, of a message itself or of on_message, ends the line too; it is printed before.
        """

        def run() -> None:
            try:
                while True:
                    try:
                        message, fds = self.receive()
                    except (EOFError, OSError):
                        break
                    on_message(message, fds)
            except ProtocolError as error:
                print(f"fftrain: the line to the agent ends: {error}", file=sys.stderr, flush=True)
            on_gone()

        self._thread = threading.Thread(target=run, name="ff-link", daemon=True)
        self._thread.start()


class AgentEnd:
    """The agent's end: non-blocking, in the agent's event loop; messages leave in the order of `send`."""

    def __init__(self, sock: socket.socket, on_message: Callable[[Message], None], on_gone: Callable[[], None]) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_gone = on_message, on_gone
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._writing = False
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, name: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Queue one message. Descriptors are duplicated here, the caller keeps its own."""
        if not self._open:
            return
        self._queue.append((_encode(make(AGENT_TO_WORKER, name, **fields)), [os.dup(fd) for fd in fds]))
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        while self._queue and self._open:
            packet, fds = self._queue[0]
            try:
                _send(self._sock, packet, fds)
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self.close()
                return
            self._queue.popleft()
            for fd in fds:
                os.close(fd)
        if self._writing and self._open:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            packet, fds = _receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            packet, fds = b"", []
        for fd in fds:  # workers never send descriptors
            os.close(fd)
        if not packet:
            self._gone()
            return
        try:
            message = _decode(WORKER_TO_AGENT, packet)
        except ProtocolError as error:
            print(f"fftrain: the line to a worker ends: {error}", file=sys.stderr, flush=True)
            self._gone()
            return
        self._on_message(message)

    def _gone(self) -> None:
        if self._open:
            self.close()
            self._on_gone()

    def close(self) -> None:
        """Stop reading and writing; queued messages are dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        with contextlib.suppress(ValueError, OSError):
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
