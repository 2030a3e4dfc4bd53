"""The receiver against a peer that is ours, broken or hostile: frames are written by hand."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from functools import partial

import pytest

from ff_core.contract.stamps import stamp
from ff_core.copy.arena import Arena, ArenaLayout, SlotState
from ff_core.copy.receiver import ConnectionStatus, Receiver
from ff_core.errors import EngineError
from tests.copy import frames
from tests.copy.frames import ACK, BEGIN, BLOB, CHUNK, JOURNAL, REJECT, Frame, conversation, receive
from tests.copy.rig import Live, eventually

PAYLOAD = os.urandom(20_000)
LAYOUT = ArenaLayout(3, len(PAYLOAD), 0, 100, 50, 8192)
EPOCH = 4


Carrier = frames.Inline | frames.Shared
CARRIERS = pytest.mark.parametrize(
    "carrier", [frames.Inline, frames.Shared, partial(frames.Shared, copiers=3)], ids=["tcp", "shm", "shm-copiers"]
)


class Peer:
    """A receiver with one arena, and the other end of its connection."""

    def __init__(self, carrier: Callable[[], Carrier] = frames.Inline, layout: ArenaLayout = LAYOUT) -> None:
        self.carrier = carrier()
        self.arena = Arena.create(layout)
        self.receiver = Receiver()
        self.ended: list[ConnectionStatus] = []
        self.connect()

    def connect(self, epoch: int = EPOCH) -> None:
        self.sock, far = socket.socketpair()
        carrier = self.carrier
        how = (carrier.name, carrier.peers_file(), carrier.copiers)
        self.connection = self.receiver.attach(far.detach(), self.arena, epoch, *how)

    def send(self, *what: Frame) -> None:
        self.sock.sendall(b"".join(self.carrier.encode(frame) for frame in what))

    def deliver(self, version: int, blob: bytes = b"scalars", epoch: int = EPOCH) -> None:
        self.send(*conversation(PAYLOAD, 8192, epoch, version, blob))
        assert receive(self.sock) == Frame(ACK, epoch, version)

    def end(self, connection: int | None = None) -> ConnectionStatus:
        """How the connection (by default the latest) ended."""
        connection = connection or self.connection

        def poll() -> bool:
            self.ended += [status for status in self.receiver.poll() if not status.open]
            return any(status.connection_id == connection for status in self.ended)

        eventually(poll, "end of the connection")
        return next(status for status in self.ended if status.connection_id == connection)

    def refused(self, message: str, error: str = "protocol") -> None:
        """The connection ended with this message, and the peer was told."""
        status = self.end()
        assert status.error == error and message in status.message, status
        answer = receive(self.sock)
        assert answer is not None and answer.type == REJECT and message in answer.data.decode()
        assert receive(self.sock) is None
        self.sock.close()

    def content(self, slot: int) -> bytes:
        out = Live(len(PAYLOAD))
        self.arena.restore(slot, out.segments())
        return bytes(out.memory)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.receiver.close()
        self.arena.close()
        self.carrier.close()


@CARRIERS
def test_versions_alternate_between_slots(carrier: Callable[[], Carrier]) -> None:
    with Peer(carrier) as peer:
        for version in range(4):
            peer.deliver(version, bytes([version]))
            held = {info.version for info in peer.arena.slot_infos() if info.complete}
            assert held == {version, version - 1} - {-1}
            slot = peer.arena.find(EPOCH, version)
            assert slot is not None and peer.content(slot) == PAYLOAD and peer.arena.blob(slot) == bytes([version])
        assert peer.receiver.poll()[0].last_stamp == stamp(EPOCH, 3)


@CARRIERS
def test_only_complete_version_is_never_overwritten(carrier: Callable[[], Carrier]) -> None:
    """While the next version arrives, the newest complete one stays, whichever slot it is in."""
    with Peer(carrier) as peer:
        peer.deliver(0)
        peer.deliver(1)
        newest = peer.arena.find(EPOCH, 1)
        assert newest is not None
        for cut in (1, 2, 3):
            peer.connect()
            peer.send(*conversation(PAYLOAD, 8192, EPOCH, 2, b"s")[:cut])
            eventually(lambda: peer.arena.slot_info(1 - newest).state is SlotState.WRITING)
            peer.sock.close()
            assert "in the middle of version (4, 2)" in peer.end().message
            assert peer.arena.find(EPOCH, 1) == newest and peer.content(newest) == PAYLOAD


BEGUN = conversation(PAYLOAD, 8192, EPOCH, 9, b"s")
GOOD = BEGUN[0]


@CARRIERS
@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([GOOD.but(magic=0xDEADBEEF)], "frame magic is 0xdeadbeef"),
        ([GOOD.but(header_crc=1)], "header's checksum"),
        ([GOOD.but(type=0)], "frame type is 0"),
        ([GOOD.but(type=77)], "frame type is 77"),
        ([Frame(ACK, EPOCH, 9)], "unexpected ACK"),
        ([Frame(REJECT, EPOCH, 9)], "unexpected REJECT"),
        ([GOOD.but(epoch=EPOCH - 1)], "BEGIN frame of epoch 3 on a connection of epoch 4"),
        ([GOOD.but(epoch=EPOCH + 1)], "BEGIN frame of epoch 5 on a connection of epoch 4"),
        ([GOOD.but(rank=4)], "BEGIN frame of rank 4 for the arena of rank 3"),
        ([GOOD.but(version=-1)], "version is -1"),
        ([GOOD.but(flags=2)], "BEGIN has flags 0x2"),
        ([GOOD.but(data=b"")], "BEGIN of 0 bytes, expected 16"),
        ([GOOD.but(length=2**63)], "BEGIN of 9223372036854775808 bytes"),
        ([GOOD.but(data_crc=5)], "BEGIN 0 of version (4, 9): checksum"),
        ([GOOD.but(data=struct.pack("<QQ", 19_999, 8192))], "BEGIN says 19999 bytes in chunks of 8192"),
        ([GOOD.but(data=struct.pack("<QQ", 20_000, 4096))], "the arena of rank 3 has 20000 in chunks of 8192"),
        ([GOOD, GOOD.but(version=10)], "BEGIN of version 10 before version 9 was complete"),
        ([BEGUN[1]], "CHUNK frame without BEGIN"),
        ([BEGUN[-1]], "BLOB frame without BEGIN"),
        ([GOOD, BEGUN[2]], "CHUNK 1, expected 0 of 3"),
        ([GOOD, BEGUN[1], BEGUN[1]], "CHUNK 0, expected 1 of 3"),
        ([*BEGUN[:-1], BEGUN[3].but(index=3)], "CHUNK 3, expected 3 of 3"),
        ([GOOD, BEGUN[1].but(version=8)], "CHUNK frame of version 8 within version 9"),
        ([GOOD, BEGUN[1].but(data=b"x" * 8191)], "CHUNK 0 has 8191 bytes, expected 8192"),
        ([GOOD, BEGUN[1].but(length=2**40)], "CHUNK 0 has 1099511627776 bytes"),
        ([GOOD, BEGUN[1].but(data_crc=0)], "CHUNK 0 of version (4, 9): checksum"),
        ([*BEGUN[:3], BEGUN[-1]], "BLOB after 2 of 3 chunks"),
        ([*BEGUN[:-1], BEGUN[-1].but(length=101)], "BLOB of 101 bytes, the arena holds 100"),
        ([*BEGUN[:-1], BEGUN[-1].but(data_crc=9)], "BLOB 0 of version (4, 9): checksum"),
        ([Frame(JOURNAL, EPOCH, -1, b"", length=51)], "JOURNAL of 51 bytes, the arena holds 50"),
        ([Frame(JOURNAL, EPOCH, -1, b"bad", data_crc=1)], "JOURNAL 0 of version (4, -1): checksum"),
    ],
)
def test_bad_frames_cost_nothing(carrier: Callable[[], Carrier], sent: list[Frame], message: str) -> None:
    with Peer(carrier) as peer:
        peer.send(Frame(JOURNAL, EPOCH, -1, b"journal"))
        peer.deliver(7)
        peer.deliver(8)
        peer.send(*sent)
        peer.refused(message)
        newest = peer.arena.find(EPOCH, 8)
        assert newest is not None and peer.content(newest) == PAYLOAD
        assert peer.arena.find(EPOCH, 9) is None
        assert peer.arena.journal() == b"journal"
        peer.connect()
        peer.deliver(9)


@CARRIERS
def test_older_version_than_the_newest_is_refused(carrier: Callable[[], Carrier]) -> None:
    with Peer(carrier) as peer:
        peer.deliver(8)
        peer.send(GOOD.but(version=7))
        peer.refused("BEGIN of (4, 7), but (4, 8) is here already")
        peer.connect(EPOCH + 1)
        peer.send(*conversation(PAYLOAD, 8192, EPOCH + 1, 2, b""))
        assert receive(peer.sock) == Frame(ACK, EPOCH + 1, 2)


@CARRIERS
def test_cut_at_every_message_boundary_and_between(carrier: Callable[[], Carrier]) -> None:
    """The peer goes away after any frame, after any header, and within both."""
    with Peer(carrier) as peer:
        sequence = [peer.carrier.encode(frame) for frame in conversation(PAYLOAD, 8192, EPOCH, 9, b"blob", b"journal")]
        cut_everywhere(peer, sequence)


def cut_everywhere(peer: Peer, sequence: list[bytes]) -> None:
    wire, cuts, at = b"".join(sequence), {0}, 0
    for frame in sequence:
        size = len(frame)
        cuts |= {at + 1, at + frames.SIZE - 1, at + frames.SIZE, at + frames.SIZE + 1, at + size - 1, at + size}
        at += size
    assert at == len(wire)
    peer.deliver(8)
    for cut in sorted(cuts - {len(wire)}):
        peer.connect()
        peer.sock.sendall(wire[:cut])
        peer.sock.close()
        status = peer.end()
        between = cut in (0, len(sequence[0]))
        assert (status.error == "") == between, (cut, status)
        assert peer.arena.find(EPOCH, 9) is None and peer.arena.find(EPOCH, 8) is not None
        assert peer.arena.journal() in (b"", b"journal")
    peer.connect()
    peer.sock.sendall(wire)
    assert receive(peer.sock) == Frame(ACK, EPOCH, 9)


@CARRIERS
def test_newer_connection_replaces_the_older(carrier: Callable[[], Carrier]) -> None:
    with Peer(carrier) as peer:
        peer.send(*BEGUN[:2])
        old, number = peer.sock, peer.connection
        peer.connect()
        assert peer.end(number).error == "cancelled"
        assert receive(old) is None
        old.close()
        peer.deliver(9)


@CARRIERS
def test_retired_epochs_are_refused(carrier: Callable[[], Carrier]) -> None:
    with Peer(carrier) as peer:
        peer.receiver.retire_before(EPOCH + 1)
        near, far = socket.socketpair()
        with pytest.raises(EngineError, match="connection of epoch 4: epochs before 5 are retired"):
            peer.receiver.attach(far.detach(), peer.arena, EPOCH)
        assert near.recv(1) == b"", "the descriptor was taken over and closed"
        near.close()


def test_bell_rings_for_versions_journals_and_ends() -> None:
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    with Arena.create(LAYOUT) as arena, Receiver(bell) as receiver:
        os.set_blocking(bell, True)
        near, far = socket.socketpair()
        receiver.attach(far.detach(), arena, EPOCH)
        rung = 0
        for sent in ([Frame(JOURNAL, EPOCH, -1, b"j")], BEGUN):
            near.sendall(b"".join(frame.encode() for frame in sent))
            rung += os.eventfd_read(bell)
        near.close()
        rung += os.eventfd_read(bell)
        assert rung == 3
    os.close(bell)


def test_many_connections_are_all_reported_once() -> None:
    with Receiver() as receiver:
        arenas = [Arena.create(ArenaLayout(rank, 0, 0, 0, 0, 4096)) for rank in range(150)]
        socks = []
        for arena in arenas:
            near, far = socket.socketpair()
            receiver.attach(far.detach(), arena, 0)
            socks.append(near)
        assert sorted(s.connection_id for s in receiver.poll()) == list(range(1, 151))
        for sock in socks[::2]:
            sock.close()
        seen: list[int] = []

        def all_ended() -> bool:
            statuses = receiver.poll()
            seen.extend(s.connection_id for s in statuses if not s.open)
            return len(statuses) == 75 and len(seen) >= 75

        eventually(all_ended)
        assert sorted(seen) == list(range(1, 151, 2))
        for sock in socks:
            sock.close()
        for arena in arenas:
            arena.close()


def test_frames_of_a_version_without_checksums() -> None:
    with Peer() as peer:
        sequence = [
            frame.but(flags=0) if frame.type == BEGIN else frame
            for frame in conversation(PAYLOAD, 8192, EPOCH, 1, b"b")
        ]
        peer.send(*[frame.but(data_crc=0) if frame.type == CHUNK else frame for frame in sequence])
        assert receive(peer.sock) == Frame(ACK, EPOCH, 1)
        assert not peer.arena.slot_info(0).checksummed
        assert peer.content(0) == PAYLOAD
        assert [frame.type for frame in sequence][-1] == BLOB


def test_offsets_beyond_the_peers_file() -> None:
    """Nothing outside of it is touched: the connection is closed, complete versions stay."""
    for offset in (2**64 - 1, 2**63, 1 << 20, (1 << 20) - 8191):
        with Peer(frames.Shared) as peer:
            peer.deliver(8)
            peer.send(GOOD)
            peer.sock.sendall(BEGUN[1].encode()[: frames.SIZE] + struct.pack("<Q", offset))
            peer.refused(f"CHUNK of 8192 bytes at offset {offset} of a memory file of {1 << 20}")
            assert peer.arena.find(EPOCH, 8) is not None


def test_what_is_no_sealed_memory_file_is_refused() -> None:
    with Peer() as peer:
        for fd, message in (
            (os.open("/dev/null", os.O_RDONLY), "is not a memory file"),
            (os.memfd_create("ff-test", os.MFD_ALLOW_SEALING), "can shrink"),
        ):
            near, far = socket.socketpair()
            with pytest.raises(EngineError, match=message):
                peer.receiver.attach(far.detach(), peer.arena, EPOCH, "shm", fd)
            near.settimeout(60)
            assert near.recv(1) == b"", "the engine has closed its end"
            near.close()
