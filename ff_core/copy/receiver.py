"""An agent's receiver: takes versions off connections and puts them into slots, with one engine thread for each stream
of a connection, or several that copy out of shared memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ff_core.copy.arena import Arena
from ff_core.copy.binding import CODE_NAMES, CReceiverStatus, Streams, check, connection, engine
from ff_core.copy.handle import EngineHandle


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


class Receiver(EngineHandle):
    """notify_fd: an eventfd rung after every completed version, received journal and ended connection; -1: none."""

    _BATCH = 64

    def __init__(self, notify_fd: int = -1) -> None:
        handle = ctypes.c_void_p()
        check(engine().ff_receiver_open(notify_fd, ctypes.byref(handle)))
        super().__init__("receiver", handle, engine().ff_receiver_close, lambda: None)

    def attach(
        self, fds: Streams, arena: Arena, epoch: int, transport: str = "tcp", peers_file: int = -1, copiers: int = 1
    ) -> int:
        """Receive into `arena` from this connected, authenticated stream socket, or from the 1 to 16 streams of one
        connection, stream 0 first; returns the connection's number.

        transport: "tcp" (any stream sockets), "shm" or "ucx": as the sender's.  peers_file: over "shm", the memory file
        that the peer's slots lie in, sealed against shrinking; otherwise -1.  copiers: so many
        threads, 1 to 16, copy out of it; of no meaning otherwise. Takes all descriptors over, also on
        failure. An older connection for the arena is closed and joined first. EngineError: `epoch` is retired.
        """
        number = ctypes.c_uint64()
        given = connection(fds, transport, peers_file, copiers if transport == "shm" else 0)
        place = (arena.address, arena.size, epoch, ctypes.byref(number))
        check(engine().ff_receiver_attach(self._open(), ctypes.byref(given), *place))
        arena.before_close(self, lambda: self._detach(arena))
        return number.value

    def _detach(self, arena: Arena) -> None:
        if self.is_open:
            self.detach(arena)

    def detach(self, arena: Arena) -> None:
        """Close and join the arena's connection, if any."""
        check(engine().ff_receiver_detach(self._open(), arena.address))

    def retire_before(self, epoch: int) -> None:
        """Close and join every connection of an epoch before `epoch`, and refuse new ones: they touch no arena now."""
        check(engine().ff_receiver_retire_before(self._open(), epoch))

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
