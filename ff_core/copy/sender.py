"""Sends one complete slot and the init journal, to a receiver elsewhere: re-replication, filling a newcomer's arena."""

from __future__ import annotations

from ff_core.copy.arena import Arena
from ff_core.copy.binding import check, engine


def send_slot(fd: int, arena: Arena, slot: int, epoch: int, timeout_s: float, transport: str = "tcp") -> None:
    """Send `slot`, which must be complete and of `epoch`, over a connected stream socket; return when the peer has
    acknowledged. transport: as for Writer.add_holder.

    Blocks, without the GIL: call it from a thread of its own. Takes `fd` over; shutdown(2) on a duplicate ends it
    early. Raises CorruptSlotError (a checksum does not match here), ProtocolError (the peer refused), TimeoutError,
    TransportError (nothing was sent), EngineError.
    """
    ways = {"shm": engine().ff_send_slot_shared, "ucx": engine().ff_send_slot_ucx}
    send = ways.get(transport, engine().ff_send_slot)
    check(send(fd, arena.address, arena.size, slot, epoch, int(timeout_s * 1000)))
