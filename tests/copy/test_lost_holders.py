"""Holders that go away, stall, refuse or talk nonsense: noticed, named, no bother to begin, seal and wait_copied."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.errors import EngineError, ProtocolError
from tests.copy.frames import ACK, BLOB, REJECT, Frame, receive
from tests.copy.rig import PairMaker, Rig, eventually, name_of, over, shared_pair, streams_pair, tcp_pair

PAIRS = pytest.mark.parametrize("pair", [tcp_pair, socket.socketpair, shared_pair], ids=name_of)
ALL_PAIRS = pytest.mark.parametrize("pair", [tcp_pair, streams_pair, socket.socketpair, shared_pair], ids=name_of)


def lost(rig: Rig, error: type[Exception], message: str) -> None:
    """The holder is reported lost for this reason; the trainer's calls go on working; cancel cures it."""
    eventually(lambda: rig.writer.stats().holders_lost == 1, "loss of the holder")
    with pytest.raises(error, match=message):
        rig.writer.check()
    assert rig.page.load("committed") == 0
    for version in (0, 1):
        if version > 0:
            rig.writer.begin(version, 1, version)
            rig.writer.seal(version, b"s")
        rig.writer.wait_copied(version, 60)
    eventually(lambda: rig.own.find(1, 1) is not None)
    assert rig.page.load("committed") == 0
    rig.writer.cancel()
    rig.writer.check()
    rig.receiver.retire_before(2)
    rig.connect(2)
    rig.run(0, 2, 2)


@ALL_PAIRS
def test_peer_gone_from_the_start(pair: PairMaker) -> None:
    with Rig() as rig:
        near, far = pair()
        rig.writer.add_holder(near.detach(), over(pair))
        far.close()
        eventually(lambda: rig.writer.stats().holders_lost == 1, "notice without anything to send")
        rig.writer.begin(0, 1, 0)
        rig.writer.seal(0, b"s")
        lost(rig, EngineError, "holder of rank 3 is lost: connection closed by the peer")


@PAIRS
def test_peer_gone_after_any_frame(pair: PairMaker) -> None:
    """A journal, BEGIN, 3 chunks, BLOB: the peer reads so many frames, then closes."""
    for count in range(6):
        with Rig(sent=20_000) as rig:
            rig.own.set_journal(b"j")
            near, far = pair()
            rig.writer.add_holder(near.detach(), over(pair))
            rig.writer.begin(0, 1, 0)
            rig.writer.seal(0, b"s")
            for _ in range(count):
                assert receive(far, rig.own.fd if pair is shared_pair else -1) is not None
            far.close()
            lost(rig, EngineError, "closed by the peer|reset|Broken")


@pytest.mark.parametrize("pair", [socket.socketpair, streams_pair], ids=name_of)
def test_peer_that_stalls(pair: PairMaker) -> None:
    with Rig(sent=40_000_000, stall_timeout_s=0.3) as rig:
        near, far = pair()
        rig.writer.add_holder(near.detach())
        rig.writer.begin(0, 1, 0)
        rig.writer.seal(0, b"s")
        lost(rig, TimeoutError, "took no byte for 300 ms")
        far.close()


@ALL_PAIRS
def test_peer_that_does_not_acknowledge(pair: PairMaker) -> None:
    with Rig(sent=20_000, stall_timeout_s=0.3) as rig:
        near, far = pair()
        rig.writer.add_holder(near.detach(), over(pair))
        rig.writer.begin(0, 1, 0)
        rig.writer.seal(0, b"s")
        lost(rig, TimeoutError, "no acknowledgement for 300 ms")
        far.close()


@pytest.mark.usefixtures("streams")
def test_unsealed_version_is_no_stall() -> None:
    """However long an iteration takes: the holder waits for the seal."""
    with Rig(sent=20_000, stall_timeout_s=0.05) as rig:
        rig.connect(1)
        rig.writer.begin(0, 1, 0)
        eventually(lambda: rig.writer.stats().bytes_sent > rig.sent)
        threading.Event().wait(0.5)
        assert rig.writer.stats().holders_lost == 0
        rig.writer.seal(0, b"s")
        eventually(lambda: rig.committed(1, 0))


@PAIRS
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Frame(ACK, 1, 1), r"acknowledgement of \(1, 1\), expected \(1, 0\)"),
        (Frame(ACK, 2, 0), r"acknowledgement of \(2, 0\), expected \(1, 0\)"),
        (Frame(ACK, 1, 0, rank=9), r"acknowledgement of \(1, 0\)"),
        (Frame(ACK, 1, 0, b"data"), "unexpected ACK frame of 4 bytes"),
        (Frame(BLOB, 1, 0), "unexpected BLOB frame"),
        (Frame(REJECT, 1, 0, b"no room"), "the holder refused: no room"),
        (Frame(REJECT, 1, 0, b"x" * 200), "REJECT of 200 bytes"),
        (Frame(ACK, 1, 0, magic=1), "frame magic is 0x1"),
        (Frame(ACK, 1, 0, header_crc=1), "header's checksum"),
    ],
)
def test_wrong_answers(pair: PairMaker, answer: Frame, message: str) -> None:
    with Rig(sent=20_000) as rig:
        near, far = pair()
        rig.writer.add_holder(near.detach(), over(pair))
        rig.writer.begin(0, 1, 0)
        rig.writer.seal(0, b"s")
        while True:
            frame = receive(far, rig.own.fd if pair is shared_pair else -1)
            assert frame is not None
            if frame.type == BLOB:
                break
        encoded = answer.encode()
        for part in (encoded[:10], encoded[10:50], encoded[50:]):  # also in pieces
            far.sendall(part)
        lost(rig, ProtocolError, message)
        far.close()


def test_answer_to_nothing() -> None:
    with Rig() as rig:
        near, far = socket.socketpair()
        rig.writer.add_holder(near.detach())
        far.sendall(Frame(ACK, 1, 0).encode())
        eventually(lambda: rig.writer.stats().holders_lost == 1)
        with pytest.raises(ProtocolError, match="version that was not sent"):
            rig.writer.check()
        far.close()


@ALL_PAIRS
def test_refusal_reaches_the_writer(pair: PairMaker) -> None:
    """Even though the connection breaks under the writer while it sends: the reason is what is reported."""
    with Rig(sent=20_000_000) as rig, Arena.create(ArenaLayout(3, 777, 0, 4096, 4096, 8192)) as other:
        near, far = pair()
        rig.receiver.attach(far.detach(), other, 1, rig.peers_file(pair))
        rig.writer.add_holder(near.detach(), over(pair))
        rig.writer.begin(0, 1, 0)
        rig.writer.seal(0, b"s")
        lost(
            rig,
            ProtocolError,
            "the holder refused: BEGIN says 20000000 bytes in chunks of 8192, the arena of rank 3 has 777",
        )


@pytest.mark.usefixtures("streams")
def test_one_of_three_holders_is_lost() -> None:
    with Rig(holders=3) as rig:
        rig.connect(1)
        rig.run(0, 1, 0)
        rig.receiver.detach(rig.holders[1])
        eventually(lambda: rig.writer.stats().holders_lost == 1)
        content = rig.live.fill(1)
        rig.writer.begin(1, 1, 1)
        rig.writer.seal(1, b"s")
        for arena in (rig.own, rig.holders[0], rig.holders[2]):
            eventually(lambda arena=arena: arena.find(1, 1) is not None)
            assert rig.restored(arena, 1) == content[: arena.layout.payload_bytes]
        assert rig.committed(1, 0), "version 1 is not on every holder"
        assert rig.holders[1].find(1, 0) is not None and rig.holders[1].find(1, 1) is None
        with pytest.raises(EngineError, match=r"\(1, 0\).*in flight|slot 1 still holds"):
            rig.writer.begin(1, 1, 2)


FORKING = """
import os, sys, time
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.writer import Writer
from ff_core.errors import EngineError

writer = Writer(Arena.create(ArenaLayout(3, 100)))
writer.set_segments([])
writer.add_holder(int(sys.argv[1]))
if os.fork() == 0:
    try:
        writer.begin(0, 1, 0)
    except EngineError as error:
        print(os.getpid(), error, flush=True)
    writer.close()
    time.sleep(600)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_forked_child_does_not_keep_the_connection() -> None:
    """The peer notices the process's death although a child of it (a data loader's worker) lives on."""
    near, far = socket.socketpair()
    command = [sys.executable, "-c", FORKING, str(near.fileno())]
    process = subprocess.Popen(
        command, pass_fds=[near.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    near.close()
    assert process.stdout is not None and process.stdin is not None
    pid, _, said = process.stdout.readline().partition(" ")
    try:
        assert "a forked child cannot use it" in said
        process.stdin.close()
        assert process.wait(60) == -9
        far.settimeout(60)
        assert far.recv(100) == b"", "closed, while the child lives"
        os.kill(int(pid), 0)
    finally:
        os.kill(int(pid), 9)
        process.stdout.close()
        far.close()
