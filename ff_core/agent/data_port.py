"""An agent's data port: versions arrive here over TCP, shared memory or UCX, and slots leave from here.

Python accepts and authenticates, the engine's receiver then owns the descriptor. Connections name the epoch they
belong to; one of a future epoch waits until this agent has got that verdict too, one of an old epoch is refused.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from ff_core.agent.gathering import Gathering
from ff_core.agent.interfaces import Port, PortOwner
from ff_core.contract.auth import accept_data, answer_data
from ff_core.copy.arena import Arena, slot_with
from ff_core.copy.connect import Connection, accept_arena, connect, listen_shared
from ff_core.copy.receiver import Receiver
from ff_core.copy.sender import send_slot
from ff_core.copy.transports import StreamChoice, listens_shared, missing_for_ucx
from ff_core.errors import EngineError, FailoverError, ProtocolError

_HANDSHAKE_S = 10.0
_PARK_S = 30.0
_SEND_S = 600.0


class DataPort(Port):
    """Opens before its agent is there: the agent's hello to the controller names its address."""

    def __init__(self, secret: bytes, say: Callable[[str], None]) -> None:
        self._secret, self._say = secret, say
        self._owner: PortOwner | None = None
        self._epoch = 0
        self.retired_before = 0  # connections of older epochs are closed and joined
        self._epoch_changed = asyncio.Condition()
        self._notify_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._receiver = Receiver(self._notify_fd)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending: list[Connection] = []
        self._sends: set[asyncio.Task[None]] = set()
        self._shared: socket.socket | None = None
        self._transport, self._streams = "tcp", StreamChoice()
        self._gathering = Gathering(_HANDSHAKE_S)

    async def open(self, host: str) -> tuple[str, int]:
        """Listen on a free port of `host`; returns the address peers connect to."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=256)
        self._listener.setblocking(False)
        loop.add_reader(self._notify_fd, self._notified)
        self._spawn(self._accept(self._listener))
        self._address = self._listener.getsockname()[:2]
        return self._address

    def set_owner(self, owner: PortOwner) -> None:
        """See Port. Raises FailoverError the second time."""
        if self._owner is not None:
            raise FailoverError("the data port has an owner already")
        self._owner = owner

    def share(self, transport: str, emulated: bool, streams: StreamChoice) -> None:
        """See Port."""
        offered = listens_shared(transport, emulated)
        self._transport, self._streams = transport, streams
        if offered and self._shared is None:
            self._shared = listen_shared(self._address)
            self._accepts_shared = self._spawn(self._accept(self._shared))
        elif not offered and self._shared is not None:
            self._accepts_shared.cancel()
            self._shared.close()
            self._shared = None

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _notified(self) -> None:
        os.eventfd_read(self._notify_fd)
        self._receiver.poll()
        if self._owner is not None:
            self._owner.data_arrived()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, peer = await loop.sock_accept(listener)
            sock.setblocking(False)
            self._spawn(self._welcome(sock, f"{peer[0]}:{peer[1]}" if sock.family != socket.AF_UNIX else "this host"))

    async def _welcome(self, sock: socket.socket, peer: str) -> None:
        arena_fd = -1
        socks = [sock]
        try:
            hello = await accept_data(sock, self._secret, _HANDSHAKE_S)
            here = sock.family == socket.AF_UNIX
            if here:
                arena_fd = await accept_arena(sock, _HANDSHAKE_S)
            epoch = hello.get("epoch")
            if not isinstance(epoch, int) or not isinstance(hello.get("rank"), int):
                raise ProtocolError("hello without an epoch or without a rank")
            ucx = hello.get("transport") == "ucx"
            if ucx and here:
                raise ProtocolError("UCX was asked for on the socket for shared memory")
            if ucx and (missing := await asyncio.to_thread(missing_for_ucx)):
                raise ProtocolError(f"the peer wants to use UCX: {missing}")
            if "group" in hello and (ucx or here):
                raise ProtocolError("several streams were asked for, which only TCP has")
            gathered = await self._gathering.join(sock, hello)
            if gathered is None:
                socks = []  # the task of another stream has it
                return
            socks = gathered
            await self._wait_epoch(epoch)
            if self._owner is None:
                raise ProtocolError("this node has not joined its job yet")
            arena = self._owner.arena_for(hello)
            _expect_silent(socks)
            for one in socks:
                await answer_data(one, True)
            if epoch != self._epoch:
                raise ProtocolError(f"epoch {epoch} ended during the handshake")
            for one in socks:
                one.setblocking(True)
            fd, arena_fd = arena_fd, -1  # the receiver's from here on
            transport = "ucx" if ucx else "shm" if here else "tcp"
            self._receiver.attach([one.detach() for one in socks], arena, epoch, transport, fd, self._streams.copiers)
        except (FailoverError, OSError, asyncio.TimeoutError) as error:
            self._say(f"data connection from {peer} closed: {error or type(error).__name__}")
            for one in socks:
                try:
                    await answer_data(one, False)
                except OSError:
                    pass
        finally:
            for one in socks:
                one.close()
            if arena_fd >= 0:
                os.close(arena_fd)

    async def _wait_epoch(self, epoch: int) -> None:
        async with self._epoch_changed:
            await asyncio.wait_for(self._epoch_changed.wait_for(lambda: self._epoch >= epoch), _PARK_S)
        if epoch < self._epoch:
            raise ProtocolError(f"epoch {epoch} is over, this is {self._epoch}")

    async def quiet(self) -> None:
        """See Port."""
        while self._sends:
            self._stop_sending()
            await asyncio.wait(list(self._sends), timeout=0.1)

    def _stop_sending(self) -> None:
        for connection in list(self._sending):
            connection.shutdown()

    async def retire_before(self, epoch: int) -> None:
        """See Port."""
        self._stop_sending()
        await asyncio.get_running_loop().run_in_executor(None, self._receiver.retire_before, epoch)
        self.retired_before = epoch

    def enter_epoch(self, epoch: int) -> None:
        """See Port."""

        async def announce() -> None:
            async with self._epoch_changed:
                self._epoch_changed.notify_all()

        self._epoch = epoch
        self._spawn(announce())

    def send(
        self, order: dict[str, Any], arena: Arena, epoch: int, version: int, failed: Callable[[str], None]
    ) -> None:
        """See Port."""
        arena.hold()  # until the thread is done with it

        def run() -> None:
            hello = {"rank": order["rank"], "kind": "own", "epoch": epoch}
            to, how = tuple(order["to"]), (self._transport, arena.fd, self._streams)
            connection = connect(to, self._secret, hello, _HANDSHAKE_S, *how)
            self._sending.append(connection)
            try:
                slot = slot_with(arena, epoch, version)
                fds = [os.dup(sock.fileno()) for sock in connection.socks]
                send_slot(fds, arena, slot, epoch, _SEND_S, connection.transport)
            finally:
                self._sending.remove(connection)
                connection.close()

        async def work() -> None:
            try:
                await asyncio.get_running_loop().run_in_executor(None, run)
            except (EngineError, FailoverError, OSError, TimeoutError) as error:
                if epoch == self._epoch:
                    failed(str(error))
            finally:
                arena.release()

        task = self._spawn(work())
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def close(self) -> None:
        """Stop listening, end all connections and join the engine's threads."""
        await self.quiet()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        if self._shared is not None:
            self._shared.close()
        asyncio.get_running_loop().remove_reader(self._notify_fd)
        await asyncio.get_running_loop().run_in_executor(None, self._receiver.close)
        os.close(self._notify_fd)


def _expect_silent(socks: list[socket.socket]) -> None:
    """A peer that waits for its answer has sent nothing more. One that has gone meanwhile must not take the place of a
    connection that it has made since."""
    for sock in socks:
        try:
            more = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        raise ProtocolError("the peer did not wait for the answer" if more else "the peer has gone meanwhile")
