"""An agent's receiver: takes versions off connections and puts them into slots, one engine thread for each stream of a
connection."""

from __future__ import annotations

import ctypes
import os
import weakref
from dataclasses import dataclass
from types import TracebackType

from ff_core.copy.arena import Arena
from ff_core.copy.binding import CODE_NAMES, CReceiverStatus, Streams, check, descriptors, engine
from ff_core.errors import EngineError


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection. last_stamp: newest version completed over it, 0: none.  bytes: received.  journals: init
    journals received.

    error: "" while open and when the peer closed between two versions, else what ended it ("protocol", "cancelled",
    ...); message: why.
    """

    connection_id: int
    last_stamp: int
    bytes: int
    journals: int
    open: bool
    error: str
    message: str


class Receiver:
    """notify_fd: an eventfd rung after every completed version, received journal and ended connection; -1: none."""

    _BATCH = 64

    def __init__(self, notify_fd: int = -1) -> None:
        self._pid = os.getpid()
        handle = ctypes.c_void_p()
        self._handle: int | None = None
        check(engine().ff_receiver_open(notify_fd, ctypes.byref(handle)))
        self._handle = handle.value
        # Also at interpreter exit, before Python unmaps what the engine's threads use.
        self._closer = weakref.finalize(self, _close, handle, self._pid)

    def _open(self) -> int:
        if self._handle is None:
            raise EngineError("the receiver is closed")
        return self._handle

    def attach(self, fds: Streams, arena: Arena, epoch: int, peers_file: int = -1, ucx: bool = False) -> int:
        """Receive into `arena` from this connected, authenticated stream socket, or from the 1 to 16 streams of one
        connection, stream 0 first; returns the connection's number.

        peers_file: over shared memory, the memory file that the peer's slots lie in, sealed against shrinking; -1: data
        come over the socket or, with ucx, through UCX. Takes all descriptors over, also on failure. An older
        connection for the arena is closed and joined first. EngineError: `epoch` is retired.
        """
        number = ctypes.c_uint64()
        streams, count = descriptors(fds)
        place = (arena.address, arena.size, epoch, ctypes.byref(number))
        if ucx:
            check(engine().ff_receiver_attach_ucx(self._open(), streams[0], *place))
        elif peers_file < 0:
            check(engine().ff_receiver_attach(self._open(), streams, count, *place))
        else:
            check(engine().ff_receiver_attach_shared(self._open(), streams[0], peers_file, *place))
        arena.before_close(self, lambda: self._detach(arena))
        return number.value

    def _detach(self, arena: Arena) -> None:
        if self._handle is not None and os.getpid() == self._pid:
            self.detach(arena)

    def detach(self, arena: Arena) -> None:
        """Close and join the arena's connection, if any."""
        check(engine().ff_receiver_detach(self._open(), arena.address))

    def retire_before(self, epoch: int) -> None:
        """Close and join every connection of an epoch before `epoch`, and refuse new ones: they touch no arena now."""
        check(engine().ff_receiver_fence(self._open(), epoch))

    def poll(self) -> list[ConnectionStatus]:
        """All connections. One that has ended is reported by exactly one poll and then forgotten."""
        found: list[ConnectionStatus] = []
        size = self._BATCH
        while True:
            batch, count = (CReceiverStatus * size)(), ctypes.c_size_t()
            check(engine().ff_receiver_poll(self._open(), batch, size, ctypes.byref(count)))
            ended = [_status(entry) for entry in batch[: count.value] if not entry.open]
            if count.value < size:
                return found + ended + [_status(entry) for entry in batch[: count.value] if entry.open]
            found += ended  # they will not be reported again; the open ones will, in a larger batch
            size *= 2

    def close(self) -> None:
        """Close and join all connections. Idempotent; in a forked child it does nothing."""
        self._handle = None
        self._closer()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(handle: ctypes.c_void_p, pid: int) -> None:
    if os.getpid() == pid:
        check(engine().ff_receiver_close(handle))


def _status(entry: CReceiverStatus) -> ConnectionStatus:
    error = CODE_NAMES.get(entry.error, str(entry.error)) if entry.error else ""
    return ConnectionStatus(
        entry.connection_id,
        entry.last_stamp,
        entry.bytes,
        entry.journals,
        bool(entry.open),
        error,
        entry.message.decode("utf-8", "replace"),
    )
