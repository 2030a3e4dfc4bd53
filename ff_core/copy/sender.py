"""Sends one complete slot and the init journal, to a receiver elsewhere: re-replication, filling a newcomer's arena."""

from __future__ import annotations

import ctypes

from ff_core.copy.arena import Arena
from ff_core.copy.binding import Streams, check, connection, engine


def send_slot(fds: Streams, arena: Arena, slot: int, epoch: int, timeout_s: float, transport: str = "tcp") -> None:
    """Send `slot`, which must be complete and of `epoch`, over a connected stream socket, or the streams of one
    connection; return when the peer has acknowledged. transport: as for Writer.add_holder.

    Blocks, without the GIL: call it from a thread of its own. Takes the descriptors over; shutdown(2) on duplicates
    ends it early. Raises CorruptSlotError (a checksum does not match here), ProtocolError (the peer refused),
    TimeoutError, TransportError (nothing was sent), EngineError.
    """
    given = connection(fds, transport)
    what = (arena.address, arena.size, slot, epoch, int(timeout_s * 1000))
    check(engine().ff_send_slot(ctypes.byref(given), *what))
