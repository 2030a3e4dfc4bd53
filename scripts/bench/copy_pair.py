"""Two ranks as two processes on this machine: one-way streams and exchanges, the engine's and the floors'.

Every measurement is an *action* that both processes run between two gloo barriers; its time is that of the slower one.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter, process_time

from bench.copy_local import Anonymous, commit, layout
from ff_core.copy.arena import Arena
from ff_core.copy.connect import listen_shared, shared_name
from ff_core.copy.page import StatusPage
from ff_core.copy.receiver import Receiver
from ff_core.copy.sender import send_slot
from ff_core.copy.writer import Writer

_PIECE = 1 << 20  # of the raw stream: the engine's chunk
_TIMEOUT_S = 120.0
MOST_STREAMS = 8  # of one connection


class Rank:
    """One of two ranks (0 sends in the one-way actions): live memory, own arena, the other's replica."""

    def __init__(self, rank: int, size: int, rendezvous: str) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
        self._dist = dist
        self.rank, self.size = rank, size
        self._live = Anonymous(size)
        self._into = Anonymous(size)
        self._tensor = torch.frombuffer(self._live.view, dtype=torch.uint8)
        self._other = torch.frombuffer(self._into.view, dtype=torch.uint8)
        self._own = Arena.create(layout(size, rank))
        self._replica = Arena.create(layout(size, 1 - rank))
        self._page = StatusPage.create()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._receiver = Receiver()
        self._version = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        ports: list[object] = [None, None]
        dist.all_gather_object(ports, self._listener.getsockname()[1])
        self._peer = ("127.0.0.1", int(str(ports[1 - rank])))
        self._writer = Writer(self._own, self._page, self._bell)
        self._writer.set_segments([(self._live.address, size, 0, -1)])
        out, into = self._connect(), self._listener.accept()[0]
        self._receiver.attach(into.detach(), self._replica, 1)
        self._writer.add_holder(out.detach())
        self._shared_listener = listen_shared(self._listener.getsockname())
        self._shared_listener.setblocking(True)
        dist.barrier()
        self._plain = self._connections(MOST_STREAMS)
        self._streams = 1

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._peer)

    def _connections(self, count: int) -> list[socket.socket]:
        """From rank 0 to rank 1, in the same order on both."""
        return [self._connect() if self.rank == 0 else self._listener.accept()[0] for _ in range(count)]

    def run(self, action: str) -> tuple[float, float]:
        """Seconds and CPU seconds of `action` on this rank: stream, send, gloo, durable, shared or ucx; the first two
        also as "send:4", over so many connections side by side."""
        name, _, streams = action.partition(":")
        self._streams = int(streams or 1)
        prepared = getattr(self, f"_prepare_{name}", lambda: None)()
        self._dist.barrier()
        started, worked = perf_counter(), process_time()
        getattr(self, f"_{name}")(prepared)
        seconds = perf_counter() - started
        self._dist.barrier()
        return seconds, process_time() - worked

    def _stream(self, _: object) -> None:
        """Raw TCP, rank 0 to rank 1, memory to memory; over when the receiver has said so."""
        share = -(-self.size // self._streams)
        parts = [(self._plain[n], n * share, min(self.size, (n + 1) * share)) for n in range(self._streams)]
        others = [Thread(target=self._stream_part, args=part) for part in parts[1:]]
        for thread in others:
            thread.start()
        self._stream_part(*parts[0])
        for thread in others:
            thread.join()

    def _stream_part(self, sock: socket.socket, start: int, end: int) -> None:
        view = self._live.view if self.rank == 0 else self._into.view
        if self.rank == 0:
            for at in range(start, end, _PIECE):
                sock.sendall(view[at : min(at + _PIECE, end)])
            assert sock.recv(1) == b"."
            return
        while start < end:
            start += sock.recv_into(view[start : min(start + _PIECE, end)])
        sock.sendall(b".")

    def _prepare_send(self) -> list[socket.socket]:
        socks = self._connections(self._streams)
        if self.rank == 1:
            self._receiver.attach([sock.detach() for sock in socks], self._replica, 1)
        return socks

    def _send(self, socks: list[socket.socket]) -> None:
        """Slot to slot, rank 0 to rank 1: checksums verified before sending and on arrival."""
        if self.rank == 0:
            slot = self._own.find(1, self._version - 1)
            assert slot is not None, "no version yet: run durable first"
            send_slot([sock.detach() for sock in socks], self._own, slot, 1, _TIMEOUT_S)

    def _prepare_durable(self) -> None:
        """A `send` closed the connection for the same arena."""
        self._writer.clear_holders()
        out, into = self._connect(), self._listener.accept()[0]
        self._receiver.attach(into.detach(), self._replica, 1)
        self._writer.add_holder(out.detach())

    def _durable(self, _: object) -> None:
        """Both ranks: live tensors to own slot and to the other's replica, until committed."""
        version = self._version
        self._version += 1
        commit(self._writer, self._page, self._bell, version, _TIMEOUT_S)

    def _prepare_shared(self) -> None:
        """As durable, but the holders copy out of this rank's memory."""
        self._writer.clear_holders()
        out = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        out.connect(shared_name(self._peer))
        socket.send_fds(out, [b"F"], [self._own.fd])
        into = self._shared_listener.accept()[0]
        _, (peers_file,), _, _ = socket.recv_fds(into, 1, 1)
        self._receiver.attach(into.detach(), self._replica, 1, "shm", peers_file)
        self._writer.add_holder(out.detach(), "shm")

    def _shared(self, _: object) -> None:
        self._durable(None)

    def _prepare_ucx(self) -> None:
        """As durable, but the bytes travel through UCX."""
        self._writer.clear_holders()
        out, into = self._connect(), self._listener.accept()[0]
        self._receiver.attach(into.detach(), self._replica, 1, "ucx")
        self._writer.add_holder(out.detach(), "ucx")

    def _ucx(self, _: object) -> None:
        self._durable(None)

    def _gloo(self, _: object) -> None:
        """Both ranks: the same bytes to the other one through gloo."""
        works = [self._dist.isend(self._tensor, 1 - self.rank), self._dist.irecv(self._other, 1 - self.rank)]
        for work in works:
            assert work is not None
            work.wait()

    def close(self) -> None:
        self._dist.barrier()
        self._writer.close()
        self._receiver.close()
        self._own.close()
        self._replica.close()
        self._dist.destroy_process_group()


def _serve(rank: int, size: int, rendezvous: str, orders: Connection) -> None:
    """A rank's process: actions in, seconds out, until None."""
    os.dup2(2, 1)  # standard output is for results, and torch 2.9's gloo tells there whom it has met
    player = Rank(rank, size, rendezvous)
    orders.send(os.getpid())
    while (action := orders.recv()) is not None:
        orders.send(player.run(action))
    player.close()


class Pair:
    """Both processes, seen from the one that measures."""

    def __init__(self, size: int) -> None:
        self._directory = TemporaryDirectory(prefix="bench-copy-")
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for rank in range(2):
            near, far = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, str(Path(self._directory.name) / "rendezvous"), far), daemon=True
            )
            process.start()
            far.close()
            self._pipes.append(near)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def run(self, action: str) -> tuple[float, float]:
        """Seconds until the slower rank was through, and CPU seconds of both, system calls and waiting barriers
        included. EOFError: a process died, it has said why."""
        for pipe in self._pipes:
            pipe.send(action)
        answers = [pipe.recv() for pipe in self._pipes]
        return max(seconds for seconds, _ in answers), sum(cpu for _, cpu in answers)

    def close(self) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                pass
        for process in self._processes:
            process.join(30)
            if process.is_alive():
                process.kill()
        self._directory.cleanup()
