"""A worker and its holders in one process: own arena, live tensors, writer, receiver with replicas."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from ff_core.contract.stamps import stamp
from ff_core.copy.arena import Arena, ArenaLayout, Segment
from ff_core.copy.page import StatusPage
from ff_core.copy.receiver import Receiver
from ff_core.copy.transports import missing_for_ucx
from ff_core.copy.writer import Writer

CHUNK = 8192


def eventually(condition: Callable[[], bool], what: str = "condition", deadline_s: float = 60.0) -> None:
    """Wait for `condition`; the deadline only turns a hang into a failure."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"gave up waiting for {what}"
        time.sleep(0.001)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def shared_pair() -> tuple[socket.socket, socket.socket]:
    """For shared memory: where data lie is what counts, not the socket."""
    return socket.socketpair()


UCX = pytest.mark.skipif(bool(missing_for_ucx()), reason=missing_for_ucx())


def ucx_pair() -> tuple[socket.socket, socket.socket]:
    """The control connection of UCX: tcp's."""
    return tcp_pair()


class Bundle:
    """One side of a connection of several streams: as much of a socket as the tests need of either."""

    def __init__(self, socks: Sequence[socket.socket]) -> None:
        self.socks = list(socks)

    def detach(self) -> list[int]:
        return [sock.detach() for sock in self.socks]

    def dup(self) -> Bundle:
        return Bundle([sock.dup() for sock in self.socks])

    def shutdown(self, how: int) -> None:
        for sock in self.socks:
            sock.shutdown(how)

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


def streams_pair(count: int = 3, pair: Callable[[], tuple[socket.socket, socket.socket]] = tcp_pair) -> Any:
    """A connection of `count` streams."""
    pairs = [pair() for _ in range(count)]
    return Bundle([near for near, _ in pairs]), Bundle([far for _, far in pairs])


PairMaker = Callable[[], tuple[Any, Any]]  # two sockets, or bundles of them


def over(pair: PairMaker) -> str:
    """The transport that such a pair is for."""
    return {shared_pair: "shm", ucx_pair: "ucx"}.get(pair, "tcp")


def name_of(pair: PairMaker) -> str:
    """For the names of tests."""
    return {streams_pair: "streams", socket.socketpair: "unix"}.get(pair, over(pair))


class Live:
    """One block of memory that plays a rank's tensors: `size` bytes, all mapped to the payload from offset 0."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.memory = bytearray(size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) if size else 0
        self.fill(seed)

    def fill(self, seed: int) -> bytes:
        self.memory[:] = random.Random(seed).randbytes(len(self.memory))
        return bytes(self.memory)

    def segment(self, start: int, end: int) -> Segment:
        return (self.address + start, end - start, start, -1)

    def segments(self, *cuts: int) -> list[Segment]:
        edges = [0, *cuts, len(self.memory)]
        return [self.segment(a, b) for a, b in pairwise(edges)]


class Rig:
    """first: how connect() reaches the first holder.  copiers: of a holder through shared memory.
    sent and local bytes of the own arena; holders' arenas have the sent part."""

    first: PairMaker = staticmethod(tcp_pair)
    copiers = 2  # where there is shared memory

    def __init__(
        self,
        sent: int = 100_000,
        local: int = 30_000,
        holders: int = 1,
        blob: int = 4096,
        chunk: int = CHUNK,
        **options: object,
    ) -> None:
        self.own = Arena.create(ArenaLayout(3, sent, local, blob, 4096, chunk))
        self.holders = [Arena.create(ArenaLayout(3, sent, 0, blob, 4096, chunk)) for _ in range(holders)]
        self.live = Live(sent + local)
        self.sent = sent
        self.page = StatusPage.create()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.writer = Writer(self.own, self.page, self.bell, **options)  # type: ignore[arg-type]
        self.writer.set_segments(self.live.segments(sent))
        self.receiver = Receiver()

    def connect(self, epoch: int, pairs: Sequence[PairMaker] = ()) -> None:
        """The first holder over TCP, the second over a Unix socket, the third through shared memory, and again; or
        otherwise."""
        pairs = pairs or (self.first, socket.socketpair, shared_pair)
        for index, arena in enumerate(self.holders):
            pair = pairs[index % len(pairs)]
            near, far = pair()
            self.receiver.attach(far.detach(), arena, epoch, over(pair), self.peers_file(pair), self.copiers)
            self.writer.add_holder(near.detach(), over(pair))

    def peers_file(self, pair: PairMaker) -> int:
        """What a receiver at the other end of such a pair gets to read this writer's memory."""
        return os.dup(self.own.fd) if pair is shared_pair else -1

    def committed(self, epoch: int, version: int) -> bool:
        return self.page.load("committed") == stamp(epoch, version)

    def run(self, slot: int, epoch: int, version: int, blob: bytes = b"scalars") -> bytes:
        """One committed version of fresh content, which is returned."""
        content = self.live.fill(version)
        self.writer.begin(slot, epoch, version)
        self.writer.seal(version, blob)
        self.writer.wait_copied(version, 60)
        eventually(lambda: self.committed(epoch, version), f"commit of {version}: {self.receiver.poll()}")
        return content

    def restored(self, arena: Arena, slot: int) -> bytes:
        """The payload of a slot as far as that arena's layout goes."""
        out = Live(arena.layout.payload_bytes)
        out.memory[:] = bytes(len(out.memory))
        arena.restore(slot, out.segments())
        return bytes(out.memory)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
        self.receiver.close()
        for arena in (self.own, *self.holders):
            arena.close()
        self.page.close()
        os.close(self.bell)
