"""One node's ranks that send their versions at once, to the agent of another node on this machine; and raw streams.

Every rank is a process, the holder is one more, as in a job. What is measured is a version: from live tensors to
committed, all ranks together, from the first one's begin to the last one's end.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Thread
from time import perf_counter, process_time
from typing import Any

from bench.copy_local import Anonymous, commit, layout
from ff_core.copy.arena import Arena
from ff_core.copy.page import StatusPage
from ff_core.copy.receiver import Receiver
from ff_core.copy.transports import StreamChoice
from ff_core.copy.writer import Writer

_PIECE = 4 << 20  # of a raw stream: so large that Python does not matter
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Way:
    """How versions travel. name: "raw" (bytes, no engine), "tcp", "auto" (tcp over what turns out best) or "shm".
    count: streams, or threads that copy."""

    name: str
    count: int

    @property
    def unmeasured(self) -> int:
        """Versions that come first over a new connection: "auto" must have made its choice."""
        return 14 if self.name == "auto" else 1


def _raw(sockets: list[socket.socket], view: memoryview, part: Callable[..., None]) -> None:
    """part(socket, its share of `view`) on all sockets at once."""
    share = -(-len(view) // len(sockets))
    threads = [Thread(target=part, args=(sock, view[n * share : (n + 1) * share])) for n, sock in enumerate(sockets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Sender:
    """A rank: live tensors, an arena, a writer."""

    def __init__(self, rank: int, size: int, barrier: Any, port: int) -> None:
        self._barrier, self._port = barrier, port
        self._live = Anonymous(size)
        self._arena = Arena.create(layout(size, rank))
        self._page = StatusPage.create()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._writer = Writer(self._arena, self._page, self._bell)
        self._writer.set_segments([(self._live.address, size, 0, -1)])
        self._version = 0
        self._raw: list[socket.socket] = []

    def connect(self, way: Way) -> None:
        self._writer.clear_holders()
        count = 1 if way.name == "shm" else way.count
        socks = [socket.create_connection(("127.0.0.1", self._port)) for _ in range(count)] if way.name != "shm" else []
        if way.name == "shm":
            out = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            out.connect(f"\0bench-copy-{self._port}")
            socket.send_fds(out, [b"F"], [self._arena.fd])
            socks = [out]
        self._raw = socks if way.name == "raw" else []
        if way.name != "raw":
            transport = "shm" if way.name == "shm" else "tcp"
            self._writer.add_holder([sock.detach() for sock in socks], transport, fewer=way.name == "auto")

    def run(self, way: Way, times: int) -> tuple[list[tuple[float, float]], float, int]:
        """(begin, end) of each version by the machine's clock, CPU seconds, streams that carried the last one."""
        worked, spans = process_time(), []
        for _ in range(times):
            self._barrier.wait(_TIMEOUT_S)
            begun = perf_counter()
            if way.name == "raw":
                _raw(self._raw, self._live.view, self._send)
            else:
                self._commit()
            spans.append((begun, perf_counter()))
        return spans, process_time() - worked, self._writer.stats().streams

    @staticmethod
    def _send(sock: socket.socket, share: memoryview) -> None:
        sock.sendall(share)
        assert sock.recv(1) == b"."

    def _commit(self) -> None:
        version = self._version
        self._version += 1
        commit(self._writer, self._page, self._bell, version, _TIMEOUT_S)

    def close(self) -> None:
        self._writer.close()
        self._arena.close()


class Holder:
    """The other node's agent: a receiver with all ranks' replicas."""

    def __init__(self, size: int, ranks: int) -> None:
        self._receiver = Receiver()
        self._replicas = [Arena.create(layout(size, rank)) for rank in range(ranks)]
        self._into = [Anonymous(size) for _ in range(ranks)]
        self._raw: list[list[socket.socket]] = [[] for _ in range(ranks)]
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._shared = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._shared.bind(f"\0bench-copy-{self.port}")
        self._shared.listen()

    def accept(self, rank: int, way: Way) -> None:
        replica = self._replicas[rank]
        if way.name == "shm":
            sock = self._shared.accept()[0]
            _, (file,), _, _ = socket.recv_fds(sock, 1, 1)
            self._receiver.attach(sock.detach(), replica, 1, "shm", file, way.count)
            return
        socks = [self._listener.accept()[0] for _ in range(way.count)]
        if way.name == "raw":
            self._raw[rank] = socks
        else:
            self._receiver.attach([sock.detach() for sock in socks], replica, 1)

    def run(self, way: Way, times: int) -> None:
        """Raw streams are received here; what else arrives is the receiver's."""
        if way.name != "raw":
            return
        for _ in range(times):
            ranks = [
                Thread(target=_raw, args=(socks, into.view, self._receive))
                for socks, into in zip(self._raw, self._into, strict=True)
            ]
            for thread in ranks:
                thread.start()
            for thread in ranks:
                thread.join()

    @staticmethod
    def _receive(sock: socket.socket, share: memoryview) -> None:
        at = 0
        while at < len(share):
            at += sock.recv_into(share[at : at + _PIECE], 0, socket.MSG_WAITALL)
        sock.sendall(b".")

    def cpu_s(self) -> float:
        return process_time()

    def close(self) -> None:
        self._receiver.close()
        for replica in self._replicas:
            replica.close()


def _hold(size: int, ranks: int, orders: Connection) -> None:
    holder = Holder(size, ranks)
    orders.send(holder.port)
    while (order := orders.recv()) is not None:
        name, *arguments = order
        orders.send(getattr(holder, name)(*arguments))
    holder.close()


def _play(rank: int, size: int, barrier: Any, port: int, orders: Connection) -> None:
    sender = Sender(rank, size, barrier, port)
    while (order := orders.recv()) is not None:
        name, *arguments = order
        orders.send(getattr(sender, name)(*arguments))
    sender.close()


@dataclass(frozen=True)
class Measured:
    """seconds: of each version of all ranks together.  cpu_s: of all processes, for all of them together.  streams:
    that carried the last one, of one rank."""

    seconds: list[float]
    cpu_s: float
    streams: int


class Node:
    """All of it, seen from the process that measures. size: bytes of a rank's version."""

    def __init__(self, size: int, ranks: int) -> None:
        self.size, self.ranks = size, ranks
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(ranks)  # kept: processes find it by name
        self._processes: list[BaseProcess] = []

        def start(target: Any, *arguments: Any) -> Connection:
            near, far = context.Pipe()
            process = context.Process(target=target, args=(*arguments, far), daemon=True)
            process.start()
            far.close()
            self._processes.append(process)
            return near

        self._holder = start(_hold, size, ranks)
        port = self._answer(self._holder)
        self._senders = [start(_play, rank, size, self._barrier, port) for rank in range(ranks)]

    @staticmethod
    def _answer(pipe: Connection) -> Any:
        """EOFError: the process died, it has said why."""
        if not pipe.poll(_TIMEOUT_S):
            raise TimeoutError(f"no answer within {_TIMEOUT_S} s")
        return pipe.recv()

    def auto(self) -> int:
        """Streams that a rank of two such emulated nodes would open."""
        return StreamChoice("auto", self.ranks, 2 * self.ranks).count("127.0.0.1", "127.0.0.1")

    def measure(self, way: Way, times: int) -> Measured:
        """`times` versions over new connections, after some that do not count."""
        for rank, sender in enumerate(self._senders):
            sender.send(("connect", way))
            self._holder.send(("accept", rank, way))
            self._answer(sender)
            self._answer(self._holder)
        self._run(way, way.unmeasured)
        return self._run(way, times)

    def _run(self, way: Way, times: int) -> Measured:
        before = self._holder_cpu_s()
        for pipe in (self._holder, *self._senders):
            pipe.send(("run", way, times))
        answers = [self._answer(pipe) for pipe in self._senders]
        self._answer(self._holder)
        cpu_s = self._holder_cpu_s() - before + sum(worked for _, worked, _ in answers)
        versions = zip(*(spans for spans, _, _ in answers), strict=True)
        seconds = [max(end for _, end in spans) - min(begin for begin, _ in spans) for spans in versions]
        return Measured(seconds, cpu_s, answers[0][2])

    def _holder_cpu_s(self) -> float:
        self._holder.send(("cpu_s",))
        found: float = self._answer(self._holder)
        return found

    def close(self) -> None:
        for pipe in (*self._senders, self._holder):
            try:
                pipe.send(None)
            except OSError:
                pass
        for process in self._processes:
            process.join(30)
            if process.is_alive():
                process.kill()
