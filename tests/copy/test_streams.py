"""Connections of several streams against a peer that writes its frames by hand: order, overtaking, duplicates, ends."""

from __future__ import annotations

import ctypes
import os
import socket
import time

import pytest

from ff_core.copy.arena import Arena, SlotState
from ff_core.copy.receiver import Receiver
from ff_core.errors import EngineError
from tests.copy.frames import ACK, CHUNK, REJECT, SIZE, Frame, conversation, receive
from tests.copy.rig import eventually
from tests.copy.test_receiver import EPOCH, LAYOUT, PAYLOAD, Peer


class Peers(Peer):
    """The other end of a connection of several streams; sock is stream 0."""

    def __init__(self, streams: int = 3) -> None:
        self.streams = streams
        super().__init__()

    def connect(self, epoch: int = EPOCH) -> None:
        pairs = [socket.socketpair() for _ in range(self.streams)]
        self.socks = [near for near, _ in pairs]
        self.sock = self.socks[0]
        self.connection = self.receiver.attach([far.detach() for _, far in pairs], self.arena, epoch)

    def on(self, stream: int, *frames: Frame) -> None:
        self.socks[stream].sendall(b"".join(frame.encode() for frame in frames))

    def deliver(self, version: int, blob: bytes = b"scalars", epoch: int = EPOCH) -> None:
        for frame in conversation(PAYLOAD, 8192, epoch, version, blob):
            self.on((frame.index + version) % self.streams if frame.type == CHUNK else 0, frame)
        assert receive(self.sock) == Frame(ACK, epoch, version)

    def hang_up(self) -> None:
        for sock in self.socks:
            sock.close()

    def __exit__(self, *details: object) -> None:
        self.hang_up()
        super().__exit__(*details)


JOURNAL, BEGIN, FIRST, SECOND, THIRD, LAST = conversation(PAYLOAD, 8192, EPOCH, 9, b"s", b"journal")
NEXT = conversation(PAYLOAD, 8192, EPOCH, 10, b"t")


def quiet(sock: socket.socket) -> bool:
    """Nothing has come, for a moment: what cannot be seen otherwise is that something does not happen."""
    sock.settimeout(0.1)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("streams", [2, 3, 16])
def test_versions_alternate_between_slots(streams: int) -> None:
    with Peers(streams) as peer:
        for version in range(4):
            peer.deliver(version, bytes([version]))
            slot = peer.arena.find(EPOCH, version)
            assert slot is not None and peer.content(slot) == PAYLOAD and peer.arena.blob(slot) == bytes([version])
        wanted = 4 * (6 * SIZE - SIZE + 16 + len(PAYLOAD) + 1)
        # Another stream's thread may have to count what it has read: the acknowledgement does not wait for that.
        eventually(lambda: peer.receiver.poll()[0].bytes >= wanted)
        assert peer.receiver.poll()[0].bytes == wanted
        peer.hang_up()
        assert peer.end().error == ""


def test_chunks_in_any_order_and_before_their_begin() -> None:
    with Peers() as peer:
        peer.on(1, THIRD)
        peer.on(2, SECOND, FIRST)
        assert quiet(peer.sock) and peer.arena.slot_info(0).state is SlotState.EMPTY
        peer.on(0, BEGIN, LAST)
        assert receive(peer.sock) == Frame(ACK, EPOCH, 9)
        assert peer.content(peer.arena.find(EPOCH, 9) or 0) == PAYLOAD


def test_blob_waits_for_the_last_chunk() -> None:
    with Peers() as peer:
        peer.on(0, BEGIN, SECOND, LAST)
        peer.on(1, FIRST)
        encoded = THIRD.encode()
        peer.socks[2].sendall(encoded[:-1])
        assert quiet(peer.sock) and peer.arena.find(EPOCH, 9) is None
        peer.socks[2].sendall(encoded[-1:])
        assert receive(peer.sock) == Frame(ACK, EPOCH, 9)


def test_streams_one_version_apart() -> None:
    """Stream 1 is at the next version's chunks while stream 2 still lacks one of this version."""
    with Peers() as peer:
        peer.on(0, BEGIN)
        peer.on(1, FIRST, SECOND, *NEXT[1:4])
        peer.on(0, LAST, NEXT[0], NEXT[-1])
        assert quiet(peer.sock)
        peer.on(2, THIRD)
        assert receive(peer.sock) == Frame(ACK, EPOCH, 9)
        assert receive(peer.sock) == Frame(ACK, EPOCH, 10)
        for version in (9, 10):
            assert peer.content(peer.arena.find(EPOCH, version) or 0) == PAYLOAD


def test_same_version_again() -> None:
    with Peers() as peer:
        for _ in range(2):
            peer.on(1, FIRST, THIRD)
            peer.on(0, BEGIN, SECOND, LAST)
            assert receive(peer.sock) == Frame(ACK, EPOCH, 9)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        # Either stream's frame may be read first, and the other one is to blame.
        ([(0, BEGIN), (0, FIRST), (2, FIRST)], "CHUNK 0 of version 9 a second time"),
        ([(0, BEGIN), (1, FIRST), (1, FIRST)], "stream 1: CHUNK 0 of version 9 a second time"),
        ([(0, BEGIN), (1, THIRD.but(index=3))], "stream 1: CHUNK 3, after 0 of 3"),
        ([(0, BEGIN), (1, THIRD.but(index=2**40))], "stream 1: CHUNK 1099511627776, after 0 of 3"),
        ([(0, BEGIN), (1, FIRST.but(version=8))], "stream 1: CHUNK frame of version 8 within version 9"),
        ([(1, FIRST.but(version=8)), (0, BEGIN)], "stream 1: CHUNK frame of version 8 within version 9"),
        ([(1, FIRST.but(version=7))], "stream 1: CHUNK frame without BEGIN"),
        ([(0, FIRST)], "CHUNK frame without BEGIN"),
        ([(0, BEGIN), (0, FIRST.but(version=10))], "CHUNK frame of version 10 within version 9"),
        ([(0, BEGIN), (1, FIRST.but(data=b"x" * 8191))], "stream 1: CHUNK 0 has 8191 bytes, expected 8192"),
        ([(0, BEGIN), (1, FIRST.but(length=2**40))], "stream 1: CHUNK 0 has 1099511627776 bytes"),
        ([(0, BEGIN), (1, FIRST.but(data_crc=0))], "stream 1: CHUNK 0 of version (4, 9): checksum"),
        ([(0, BEGIN), (1, FIRST.but(epoch=3))], "stream 1: CHUNK frame of epoch 3 on a connection of epoch 4"),
        ([(0, BEGIN), (1, FIRST.but(rank=4))], "stream 1: CHUNK frame of rank 4 for the arena of rank 3"),
        ([(0, BEGIN), (1, FIRST.but(magic=5))], "stream 1: frame magic is 0x5"),
        ([(0, BEGIN), (1, FIRST.but(header_crc=5))], "stream 1: frame header's checksum"),
        ([(1, BEGIN)], "stream 1: unexpected BEGIN frame on a further stream"),
        ([(0, BEGIN), (2, LAST)], "stream 2: unexpected BLOB frame on a further stream"),
        ([(2, JOURNAL)], "stream 2: unexpected JOURNAL frame on a further stream"),
        ([(2, Frame(ACK, EPOCH, 9))], "stream 2: unexpected ACK frame on a further stream"),
        ([(0, BEGIN), (1, FIRST), (0, NEXT[0])], "BEGIN of version 10 before version 9 was complete"),
        ([(0, BEGIN), (0, LAST.but(version=10))], "BLOB frame of version 10 within version 9"),
    ],
)
def test_bad_frames_cost_nothing(sent: list[tuple[int, Frame]], message: str) -> None:
    with Peers() as peer:
        peer.on(0, Frame(JOURNAL.type, EPOCH, -1, b"journal"))
        peer.deliver(7)
        peer.deliver(8)
        for stream, frame in sent:
            peer.on(stream, frame)
        peer.refused(message)
        for sock in peer.socks[1:]:
            assert receive(sock) is None, "all streams are closed"
        newest = peer.arena.find(EPOCH, 8)
        assert newest is not None and peer.content(newest) == PAYLOAD
        assert peer.arena.find(EPOCH, 9) is None and peer.arena.journal() == b"journal"
        peer.connect()
        peer.deliver(9)


def test_second_writer_of_a_chunk_never_writes() -> None:
    """The same number on two streams at once, while the first one's data are still on their way."""
    for _ in range(5):
        with Peers() as peer:
            peer.on(0, BEGIN)
            head, half = FIRST.encode()[:SIZE], len(FIRST.data) // 2
            peer.socks[1].sendall(head + FIRST.data[:half])
            eventually(lambda: peer.receiver.poll()[0].bytes >= SIZE + 16)
            time.sleep(0.02)  # stream 1's thread is in the middle of the chunk
            peer.socks[2].sendall(head + b"\xff" * len(FIRST.data))
            peer.refused("CHUNK 0 of version 9 a second time")
            memory = ctypes.string_at(peer.arena.address, peer.arena.size)
            assert FIRST.data[:half] in memory and b"\xff" * 64 not in memory


def stream_of(frame: Frame) -> int:
    return 1 + frame.index % 2 if frame.type == CHUNK else 0


def test_any_stream_ends_at_any_boundary_and_between() -> None:
    """One stream is cut after any frame, any header, and within both; the others wait for it."""
    sequence = [JOURNAL, BEGIN, FIRST, SECOND, THIRD, LAST]
    with Peers() as peer:
        peer.deliver(8)
        for stream in range(3):
            wire = b"".join(frame.encode() for frame in sequence if stream_of(frame) == stream)
            cuts, at = {0}, 0
            for frame in sequence:
                if stream_of(frame) == stream:
                    size = len(frame.encode())
                    cuts |= {at + 1, at + SIZE - 1, at + SIZE, at + SIZE + 1, at + size - 1, at + size}
                    at += size
            for cut in sorted(cuts - {len(wire)}):
                peer.connect()
                for frame in sequence:
                    if stream_of(frame) != stream:
                        peer.on(stream_of(frame), frame)
                peer.socks[stream].sendall(wire[:cut])
                peer.socks[stream].close()
                if stream == 0:  # the only one whose end is the connection's when nothing is on its way
                    peer.hang_up()
                status = peer.end()
                clean = stream == 0 and cut in (0, len(JOURNAL.encode()))
                assert (status.error == "") == clean, (stream, cut, status)
                assert peer.arena.find(EPOCH, 9) is None and peer.arena.find(EPOCH, 8) is not None
                peer.hang_up()
        peer.connect()
        peer.deliver(9)


def test_what_a_sender_sent_before_it_died_counts() -> None:
    """Its streams end one before the other."""
    with Peers() as peer:
        peer.on(0, BEGIN)
        peer.on(1, FIRST, THIRD)
        peer.socks[1].close()
        assert quiet(peer.sock)
        peer.on(2, SECOND)
        peer.socks[2].close()
        peer.on(0, LAST)
        assert receive(peer.sock) == Frame(ACK, EPOCH, 9)
        assert peer.content(peer.arena.find(EPOCH, 9) or 0) == PAYLOAD


def test_stream_that_ended_between_versions() -> None:
    """It is noticed with the next BEGIN at the latest, before a slot is touched."""
    with Peers() as peer:
        peer.deliver(7)
        peer.deliver(8)
        peer.socks[2].close()
        assert quiet(peer.sock)
        peer.on(0, BEGIN)
        status = peer.end()
        assert status.error == "i/o" and "BEGIN of version 9, but stream 2 was closed by the peer" in status.message
        assert all(info.complete for info in peer.arena.slot_infos())


@pytest.mark.parametrize("state", ["idle", "early chunk", "within a chunk", "waiting for chunks", "chunks done"])
@pytest.mark.parametrize("how", ["retire", "detach", "attach", "close"])
def test_ended_here_in_every_state(state: str, how: str) -> None:
    """Afterwards nothing more is written, whatever still comes."""
    with Peers() as peer:
        if state == "early chunk":
            peer.on(1, FIRST)
        elif state != "idle":
            peer.on(0, BEGIN)
        if state == "within a chunk":
            peer.socks[1].sendall(FIRST.encode()[:4000])
        if state == "waiting for chunks":
            peer.on(0, LAST)
            peer.on(2, SECOND)
        if state == "chunks done":
            peer.on(1, FIRST, THIRD)
            peer.on(2, SECOND)
            eventually(lambda: peer.receiver.poll()[0].bytes >= len(PAYLOAD))
        time.sleep(0.02)  # threads reach the state that is meant; any other would do as well
        old = peer.socks
        if how == "retire":
            peer.receiver.retire_before(EPOCH + 1)
        elif how == "detach":
            peer.receiver.detach(peer.arena)
        elif how == "attach":
            number = peer.connection
            peer.connect()
            assert peer.end(number).error == "cancelled"
        else:
            peer.receiver.close()
        for sock in old:
            sock.settimeout(60)
            try:
                assert sock.recv(1) == b""
            except ConnectionResetError:
                pass
            sock.close()
        if how in ("retire", "detach"):
            assert [(s.open, s.error) for s in peer.receiver.poll()] == [(False, "cancelled")]
        assert peer.arena.find(EPOCH, 9) is None
        if how == "attach":
            peer.deliver(9)


def test_what_is_no_connection_is_refused_and_closed() -> None:
    with Arena.create(LAYOUT) as arena, Receiver() as receiver:
        for count in (0, 17):
            pairs = [socket.socketpair() for _ in range(count)]
            with pytest.raises(EngineError, match=f"a connection of {count} streams, allowed are 1 to 16"):
                receiver.attach([far.detach() for _, far in pairs], arena, EPOCH)
            for near, _ in pairs:
                assert near.recv(1) == b"", "taken over and closed"
                near.close()
        near, far = socket.socketpair()
        pipe = os.pipe()
        with pytest.raises(EngineError, match="is not a socket"):
            receiver.attach([far.detach(), pipe[0]], arena, EPOCH)
        assert near.recv(1) == b""
        near.close()
        os.close(pipe[1])
        assert receiver.poll() == []


def test_reject_is_told_whichever_stream_failed() -> None:
    with Peers(16) as peer:
        peer.on(0, BEGIN)
        peer.on(15, FIRST.but(data_crc=1))
        answer = receive(peer.sock)
        assert answer is not None and answer.type == REJECT and answer.data.startswith(b"stream 15: CHUNK 0")
