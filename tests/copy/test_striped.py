"""A sender of several streams, seen from the other end of each of them."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable

import pytest

from ff_core.copy.sender import send_slot
from ff_core.errors import EngineError, ProtocolError
from tests.copy.frames import ACK, BEGIN, BLOB, CHUNK, JOURNAL, REJECT, Frame, receive
from tests.copy.rig import CHUNK as CHUNK_BYTES
from tests.copy.rig import Bundle, Rig, eventually, streams_pair

SENT = 20 * CHUNK_BYTES + 100


def begin(rig: Rig, count: int = 3, sealed: bool = True) -> Bundle:
    """A version on its way over several streams; their other ends."""
    near, far = streams_pair(count, socket.socketpair)
    rig.writer.add_holder(near.detach())
    rig.live.fill(1)
    rig.writer.begin(0, 1, 0)
    if sealed:
        rig.writer.seal(0, b"scalars")
    return far


def read_all(socks: Iterable[socket.socket]) -> list[tuple[int, Frame]]:
    """(stream, frame), as they come, up to BLOB."""
    waiting, found = list(socks), []
    order = list(waiting)
    while True:
        for sock in select.select(waiting, [], [], 60)[0]:
            frame = receive(sock)
            assert frame is not None
            found.append((order.index(sock), frame))
            if frame.type == BLOB:
                return found


@pytest.mark.parametrize("count", [2, 3, 16])
def test_every_chunk_once_and_blob_last(count: int) -> None:
    with Rig(sent=SENT, local=0) as rig:
        rig.own.set_journal(b"j")
        far = begin(rig, count)
        found = read_all(far.socks)
        # BLOB leaves when the kernel has all chunks: what is not read yet is there at once.
        for stream, sock in enumerate(far.socks):
            sock.setblocking(False)
            while select.select([sock], [], [], 0)[0]:
                frame = receive(sock)
                assert frame is not None
                found.append((stream, frame))
        zero = [frame.type for stream, frame in found if stream == 0 and frame.type != CHUNK]
        assert zero == [JOURNAL, BEGIN, BLOB]
        chunks = [(stream, frame) for stream, frame in found if frame.type == CHUNK]
        assert sorted(frame.index for _, frame in chunks) == list(range(21))
        for _, frame in chunks:
            at = frame.index * CHUNK_BYTES
            assert frame.data == bytes(rig.live.memory[at : at + CHUNK_BYTES])
        assert len({stream for stream, _ in chunks}) > 1, "spread"
        assert all(frame.type == CHUNK for stream, frame in found if stream > 0)
        far.socks[0].setblocking(True)
        far.socks[0].sendall(Frame(ACK, 1, 0).encode())
        eventually(lambda: rig.committed(1, 0))
        far.close()


def test_stream_that_is_not_read_holds_up_only_what_it_has() -> None:
    """The others take everything else."""
    with Rig(sent=8_000_000, local=0) as rig:
        far = begin(rig)
        found: set[int] = set()
        awake = [far.socks[0], far.socks[2]]
        while True:
            ready = select.select(awake, [], [], 2)[0]
            if not ready:
                break
            for sock in ready:
                frame = receive(sock)
                assert frame is not None and frame.type != BLOB
                if frame.type == CHUNK:
                    found.add(frame.index)
        missing = set(range(-(-8_000_000 // CHUNK_BYTES))) - found
        assert missing and len(missing) * CHUNK_BYTES < 1_000_000, "its socket's buffer and two chunks"
        for _ in missing:
            frame = receive(far.socks[1])
            assert frame is not None and frame.index in missing
        assert (last := receive(far.socks[0])) is not None and last.type == BLOB
        far.close()


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_stream_that_breaks_after_any_frame(stream: int) -> None:
    for count in range(5):
        with Rig(sent=SENT, local=0) as rig:
            far = begin(rig)
            # It may get fewer than that: chunks go where there is room.
            while count > 0 and select.select([far.socks[stream]], [], [], 0.5)[0]:
                assert receive(far.socks[stream]) is not None
                count -= 1
            far.socks[stream].close()
            far.close()
            eventually(lambda rig=rig: rig.writer.stats().holders_lost == 1)  # type: ignore[misc]
            with pytest.raises(EngineError, match=r"holder of rank 3 is lost: .*(closed by the peer|Broken|reset)"):
                rig.writer.check()
            rig.writer.cancel()


def test_one_broken_stream_is_named() -> None:
    """The others, and the peer's end of stream 0, are all right."""
    with Rig(sent=4_000_000, local=0) as rig:
        far = begin(rig)
        far.socks[2].close()
        stop = threading.Event()

        def drain(sock: socket.socket) -> None:
            while not stop.is_set() and sock.recv(1 << 16):
                pass

        drains = [threading.Thread(target=drain, args=(sock,)) for sock in far.socks[:2]]
        for thread in drains:
            thread.start()
        eventually(lambda: rig.writer.stats().holders_lost == 1)
        with pytest.raises(EngineError, match="is lost: stream 2: connection closed by the peer"):
            rig.writer.check()
        for thread in drains:  # all of them were shut down
            thread.join(60)
            assert not thread.is_alive()
        far.close()
        rig.writer.cancel()


def test_broken_stream_while_nothing_is_to_be_sent_is_noticed_with_the_next_version() -> None:
    with Rig(sent=SENT, local=0) as rig:
        far = begin(rig, 2)
        read_all(far.socks)
        far.socks[0].sendall(Frame(ACK, 1, 0).encode())
        eventually(lambda: rig.committed(1, 0))
        far.socks[1].close()
        rig.writer.begin(1, 1, 1)
        eventually(lambda: rig.writer.stats().holders_lost == 1)
        with pytest.raises(EngineError, match="stream 1: connection closed by the peer"):
            rig.writer.check()
        far.close()


@pytest.mark.parametrize("sealed", [True, False])
def test_stalled_stream_is_named(sealed: bool) -> None:
    """Also while the sending thread has nothing more to hand over and sleeps until the seal."""
    with Rig(sent=4_000_000, local=0, stall_timeout_s=0.5) as rig:
        far = begin(rig, sealed=sealed)

        def drain(sock: socket.socket) -> None:
            while sock.recv(1 << 16):
                pass

        awake = [threading.Thread(target=drain, args=(sock,)) for sock in far.socks[:2]]
        for thread in awake:
            thread.start()
        eventually(lambda: rig.writer.stats().holders_lost == 1)
        with pytest.raises(TimeoutError, match="stream 2: send: the peer took no byte for 500 ms"):
            rig.writer.check()
        for thread in awake:
            thread.join(60)
        far.close()


@pytest.mark.parametrize("slot_only", [False, True], ids=["writer", "send_slot"])
def test_reason_of_a_holder_is_worth_more_than_how_a_stream_broke(slot_only: bool) -> None:
    """The further streams break first; what is said on stream 0 comes a moment later."""
    with Rig(sent=4_000_000, local=0) as rig:
        rig.run(0, 1, 0)
        near, far = streams_pair(3, socket.socketpair)

        def refuse() -> None:
            for sock in far.socks[1:]:
                sock.close()
            threading.Event().wait(0.2)
            far.socks[0].sendall(Frame(REJECT, 1, -1, b"no room").encode())
            far.socks[0].close()

        thread = threading.Thread(target=refuse)
        thread.start()
        if slot_only:
            with pytest.raises(ProtocolError, match="the receiver refused: no room"):
                send_slot(near.detach(), rig.own, 0, 1, 60)
        else:
            rig.writer.add_holder(near.detach())
            rig.writer.resend(0, 1, 0)
            eventually(lambda: rig.writer.stats().holders_lost == 1)
            with pytest.raises(ProtocolError, match="the holder refused: no room"):
                rig.writer.check()
        thread.join(60)


def test_what_is_no_connection_is_refused() -> None:
    with Rig() as rig:
        rig.run(0, 1, 0)
        for count in (0, 17):
            for call in (rig.writer.add_holder, lambda fds: send_slot(fds, rig.own, 0, 1, 60)):
                near, far = streams_pair(count, socket.socketpair)
                with pytest.raises(EngineError, match=f"a connection of {count} streams, allowed are 1 to 16"):
                    call(near.detach())
                for sock in far.socks:
                    assert sock.recv(1) == b"", "taken over and closed"
                far.close()


FORKING = """
import os, sys, time
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.writer import Writer

writer = Writer(Arena.create(ArenaLayout(3, 100)))
writer.set_segments([])
writer.add_holder([int(word) for word in sys.argv[1:]])
if os.fork() == 0:
    print(os.getpid(), flush=True)
    writer.close()
    time.sleep(600)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_forked_child_does_not_keep_the_streams() -> None:
    near, far = streams_pair(3, socket.socketpair)
    fds = [sock.fileno() for sock in near.socks]
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, *map(str, fds)],
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    near.close()
    assert process.stdout is not None and process.stdin is not None
    pid = int(process.stdout.readline())
    try:
        process.stdin.close()
        assert process.wait(60) == -9
        for sock in far.socks:
            sock.settimeout(60)
            assert sock.recv(100) == b"", "closed, while the child lives"
        os.kill(pid, 0)
    finally:
        os.kill(pid, 9)
        process.stdout.close()
        far.close()


def test_how_many_carry_versions() -> None:
    """All of them, unless fewer will do: then a number that the first versions have settled. Every version is whole."""
    size = 17 << 20  # smaller ones are not measured
    with Rig(sent=size, local=0, chunk=1 << 20) as rig:
        for epoch, fewer in enumerate((False, True)):
            near, far = streams_pair(4)
            rig.receiver.attach(far.detach(), rig.holders[0], epoch)
            rig.writer.add_holder(near.detach(), fewer=fewer)
            seen = []
            for version in range(10):
                rig.live.memory[:] = bytes([10 * epoch + version]) * size
                seen.append(rig.writer.stats().streams)
                rig.writer.begin(version % 2, epoch, version)
                rig.writer.seal(version, b"")
                eventually(lambda epoch=epoch, version=version: rig.committed(epoch, version))  # type: ignore[misc]
                slot = rig.holders[0].find(epoch, version)
                assert slot is not None and rig.restored(rig.holders[0], slot) == bytes(rig.live.memory)
            assert seen[0] == 4
            if fewer:
                assert seen[6] == 2, "tried, after two versions that do not count and two over all of them"
                assert set(seen) <= {1, 2, 4}
            else:
                assert seen == [4] * 10
            rig.writer.cancel()


def test_only_streams_can_be_fewer() -> None:
    with Rig() as rig:
        near, far = socket.socketpair()
        with pytest.raises(EngineError, match="fewer streams is 1 over shm"):
            rig.writer.add_holder(near.detach(), "shm", fewer=True)
        far.close()
