"""One slot from agent to agent."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.sender import send_slot
from ff_core.errors import CorruptSlotError, EngineError, ProtocolError
from tests.copy.frames import ACK, BLOB, Frame, receive
from tests.copy.rig import (
    CHUNK,
    UCX,
    Live,
    PairMaker,
    Rig,
    name_of,
    over,
    shared_pair,
    streams_pair,
    tcp_pair,
    ucx_pair,
)


def newcomer(rig: Rig, local: int = 30_000) -> Arena:
    return Arena.create(ArenaLayout(3, rig.sent, local, 4096, 4096, CHUNK))


OVER = pytest.mark.parametrize(
    "pair", [tcp_pair, streams_pair, shared_pair, pytest.param(ucx_pair, marks=UCX)], ids=name_of
)
SOCKETS = pytest.mark.parametrize("pair", [socket.socketpair, streams_pair], ids=name_of)


def send(rig: Rig, source: Arena, slot: int, epoch: int, target: Arena, pair: PairMaker = tcp_pair) -> None:
    near, far = pair()
    peers_file = os.dup(source.fd) if pair is shared_pair else -1
    rig.receiver.attach(far.detach(), target, epoch, peers_file, ucx=pair is ucx_pair)
    send_slot(near.detach(), source, slot, epoch, 60, over(pair))


@OVER
def test_newcomer_gets_slot_and_journal_from_a_replica(pair: PairMaker) -> None:
    with Rig() as rig:
        rig.own.set_journal(b"init")
        rig.connect(1)
        content = rig.run(0, 1, 9, b"scalars of 9")
        rig.receiver.retire_before(2)
        rig.holders[0].restamp(0, 2)
        with newcomer(rig) as arena:
            send(rig, rig.holders[0], 0, 2, arena, pair)
            slot = arena.find(2, 9)
            assert slot is not None and arena.journal() == b"init" and arena.blob(slot) == b"scalars of 9"
            info = arena.slot_info(slot)
            assert (info.full, info.payload_bytes) == (False, rig.sent)
            arena.verify(slot)
            # What is replicated elsewhere is not in this copy: refused as a whole, nothing written.
            out = Live(130_000, seed=1)
            before = bytes(out.memory)
            with pytest.raises(CorruptSlotError, match=r"holds the first 100000 of 130000 payload bytes, segment 1"):
                arena.restore(slot, out.segments(rig.sent))
            assert bytes(out.memory) == before
            arena.restore(slot, out.segments(rig.sent)[:1])
            assert (
                bytes(out.memory[: rig.sent]) == content[: rig.sent]
                and bytes(out.memory[rig.sent :]) == before[rig.sent :]
            )


@OVER
def test_own_slot_of_a_dead_worker_is_sent_without_its_local_part(pair: PairMaker) -> None:
    with Rig() as rig:
        content = rig.run(1, 1, 3)
        with newcomer(rig, local=0) as replica:
            send(rig, rig.own, 1, 1, replica, pair)
            slot = replica.find(1, 3)
            assert slot is not None and rig.restored(replica, slot) == content[: rig.sent]


@SOCKETS
def test_what_cannot_be_sent(pair: PairMaker) -> None:
    with Rig() as rig:
        rig.run(0, 1, 0)
        for slot, epoch, error, message in [
            (1, 1, CorruptSlotError, "slot 1 of rank 3 is empty"),
            (0, 2, EngineError, "slot 0 of rank 3 is of epoch 1, asked for was 2: re-stamp it first"),
            (5, 1, EngineError, "slot is 5"),
        ]:
            near, far = pair()
            with pytest.raises(error, match=message):
                send_slot(near.detach(), rig.own, slot, epoch, 60)
            for sock in getattr(far, "socks", [far]):
                assert sock.recv(1) == b"", "closed in every case"
            far.close()


@OVER
def test_damage_is_found_before_it_is_sent(pair: PairMaker) -> None:
    with Rig() as rig:
        rig.run(0, 1, 0)
        rig.own.corrupt(0, 50_000)
        with newcomer(rig) as arena:
            with pytest.raises(CorruptSlotError, match="checksum of chunk 6"):
                send(rig, rig.own, 0, 1, arena, pair)
            rig.receiver.detach(arena)
            assert arena.find(1, 0) is None


@OVER
def test_refusal_is_the_error(pair: PairMaker) -> None:
    with Rig(sent=20_000_000) as rig, Arena.create(ArenaLayout(8, 20_000_000, 0, 4096, 4096, CHUNK)) as other:
        rig.run(0, 1, 0)
        message = "the receiver refused: .*(BEGIN|CHUNK) frame of rank 3 for the arena of rank 8"
        with pytest.raises(ProtocolError, match=message):
            send(rig, rig.own, 0, 1, other, pair)


@SOCKETS
def test_deadlines(pair: PairMaker) -> None:
    with Rig(sent=40_000_000) as rig:
        rig.run(0, 1, 0)
        near, far = pair()
        with pytest.raises(TimeoutError, match="send: "):
            send_slot(near.detach(), rig.own, 0, 1, 0.3)
        far.close()
    with Rig(sent=20_000) as rig:
        rig.run(0, 1, 0)
        near, far = pair()
        with pytest.raises(TimeoutError, match="not acknowledged"):
            send_slot(near.detach(), rig.own, 0, 1, 0.3)
        far.close()


@pytest.mark.parametrize("answer", [Frame(ACK, 1, 7), Frame(ACK, 3, 0), Frame(BLOB, 1, 0)])
def test_wrong_answer(answer: Frame) -> None:
    with Rig(sent=20_000) as rig:
        rig.run(0, 1, 0)
        near, far = socket.socketpair()

        def peer() -> None:
            while (frame := receive(far)) is not None and frame.type != BLOB:
                pass
            far.sendall(answer.encode())

        thread = threading.Thread(target=peer)
        thread.start()
        with pytest.raises(ProtocolError, match=r"instead of the acknowledgement of \(1, 0\)"):
            send_slot(near.detach(), rig.own, 0, 1, 60)
        thread.join(60)
        far.close()


@SOCKETS
def test_shutdown_of_a_duplicate_ends_it(pair: PairMaker) -> None:
    with Rig(sent=40_000_000) as rig:
        rig.run(0, 1, 0)
        near, far = pair()
        handle = near.dup()
        timer = threading.Timer(0.2, handle.shutdown, [socket.SHUT_RDWR])
        timer.start()
        with pytest.raises(EngineError, match="closed by the peer"):
            send_slot(near.detach(), rig.own, 0, 1, 600)
        timer.join()
        handle.close()
        far.close()
