"""cancel() in every phase. Afterwards tensors, slots and sockets are nobody's, and the writer works again."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest

from ff_core.copy.binding import CopyCancelled
from ff_core.copy.receiver import Receiver
from tests.copy.rig import PairMaker, Rig, eventually, name_of, streams_pair

PAIRS = pytest.mark.parametrize("pair", [socket.socketpair, streams_pair], ids=name_of)


def works_again(rig: Rig, epoch: int) -> None:
    rig.receiver.retire_before(epoch)
    rig.connect(epoch)
    content = rig.run(0, epoch, 50)
    assert rig.restored(rig.holders[0], rig.holders[0].find(epoch, 50) or 0) == content[: rig.sent]


def sent_all_but_seal(rig: Rig) -> bool:
    return rig.writer.stats().bytes_sent > rig.sent


@pytest.mark.parametrize("phase", ["idle", "copying", "copied", "sealed", "committed"])
@pytest.mark.usefixtures("streams")
def test_in_each_phase(phase: str) -> None:
    with Rig(sent=4_000_000) as rig:
        rig.connect(1)
        if phase != "idle":
            rig.writer.begin(0, 1, 0)
        if phase in ("copied", "sealed", "committed"):
            rig.writer.wait_copied(0, 60)
        if phase in ("sealed", "committed"):
            rig.writer.seal(0, b"s")
        if phase == "committed":
            eventually(lambda: rig.committed(1, 0))
        rig.writer.cancel()
        assert rig.writer.stats().holders == 0
        rig.live.fill(77)
        works_again(rig, 2)


@PAIRS
def test_peer_that_never_reads(pair: PairMaker) -> None:
    """The sending threads are stuck in send(2); begin, seal and wait_copied are not, nor is cancel."""
    with Rig(sent=60_000_000, local=0) as rig:
        near, far = pair()
        rig.writer.add_holder(near.detach())
        for version in range(2):
            rig.writer.begin(version, 1, version)
            rig.writer.seal(version, b"s")
            rig.writer.wait_copied(version, 60)
        eventually(lambda: rig.own.find(1, 1) is not None)
        assert rig.page.load("committed") == 0
        rig.writer.cancel()
        # The sockets are really closed: after what was in flight comes the end.
        for sock in getattr(far, "socks", [far]):
            while sock.recv(1 << 20):
                pass
        far.close()
        works_again(rig, 2)


def test_peer_that_never_acknowledges() -> None:
    with Rig() as rig:
        near, far = socket.socketpair()
        far.setblocking(True)
        drain = threading.Thread(target=lambda: [None for _ in iter(lambda: far.recv(65536), b"")])
        drain.start()
        rig.writer.add_holder(near.detach())
        rig.writer.begin(0, 1, 0)
        rig.writer.seal(0, b"s")
        eventually(lambda: sent_all_but_seal(rig) and rig.own.find(1, 0) is not None)
        assert rig.page.load("committed") == 0
        rig.writer.cancel()
        drain.join(60)
        assert not drain.is_alive()
        far.close()
        works_again(rig, 2)


def test_while_others_wait() -> None:
    """A thread in wait_copied is released by a cancel from another one."""
    with Rig(sent=40_000_000, local=0) as rig:
        for attempt in range(5):
            outcome: list[str] = []

            def wait(version: int, outcome: list[str] = outcome) -> None:
                try:
                    rig.writer.wait_copied(version, 60)
                    outcome.append("copied")
                except CopyCancelled:
                    outcome.append("cancelled")

            rig.writer.begin(0, 1, attempt)
            waiter = threading.Thread(target=wait, args=(attempt,))
            waiter.start()
            time.sleep(attempt * 0.001)
            rig.writer.cancel()
            waiter.join(60)
            assert outcome in (["copied"], ["cancelled"])


@pytest.mark.usefixtures("streams")
def test_many_cancels_at_once() -> None:
    with Rig(sent=4_000_000) as rig:
        rig.connect(1)
        rig.writer.begin(0, 1, 0)
        threads = [threading.Thread(target=rig.writer.cancel) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        works_again(rig, 2)


@PAIRS
def test_close_with_everything_in_flight(pair: PairMaker) -> None:
    with Rig(sent=60_000_000, local=0) as rig:
        near, far = pair()
        rig.writer.add_holder(near.detach())
        rig.writer.begin(0, 1, 0)
        rig.writer.close()
        far.close()


EXITING = """
import ctypes
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.receiver import Receiver
from ff_core.copy.writer import Writer
import socket

size = 100_000_000
arena, replica = (Arena.create(ArenaLayout(0, size)) for _ in range(2))
memory = ctypes.create_string_buffer(size)
writer, receiver = Writer(arena), Receiver()
near, far = socket.socketpair()
receiver.attach(far.detach(), replica, 0)
writer.add_holder(near.detach())
writer.set_segments([(ctypes.addressof(memory), size, 0, -1)])
writer.begin(0, 0, 0)
"""


def test_interpreter_exit_with_everything_in_flight() -> None:
    """Memory goes away at exit, threads before it: no crash."""
    done = subprocess.run([sys.executable, "-c", EXITING], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("streams")
def test_cancelled_versions_slot_is_never_complete() -> None:
    with Rig(sent=8_000_000) as rig:
        for attempt in range(10):
            rig.connect(attempt)
            rig.writer.begin(0, attempt, 0)
            time.sleep(attempt * 0.0005)
            rig.writer.cancel()
            rig.receiver.retire_before(attempt + 1)
            assert rig.own.find(attempt, 0) is None and rig.holders[0].find(attempt, 0) is None


@pytest.mark.usefixtures("streams")
def test_retiring_stops_a_connection_that_waits() -> None:
    with Rig() as rig:
        rig.connect(1)
        rig.run(0, 1, 0)
        rig.receiver.retire_before(1)
        assert rig.receiver.poll()[0].open, "epoch 1 is not before epoch 1"
        rig.receiver.retire_before(2)
        status = rig.receiver.poll()
        assert [(s.open, s.error) for s in status] == [(False, "cancelled")]
        assert rig.receiver.poll() == []
        eventually(lambda: rig.writer.stats().holders_lost == 1)


def test_receivers_are_joined_before_an_arena_goes() -> None:
    with Rig() as rig:
        with Receiver() as receiver:
            near, far = socket.socketpair()
            receiver.attach(far.detach(), rig.holders[0], 1)
            rig.holders[0].close()
            assert not receiver.poll()[0].open
            assert near.recv(1) == b""
            near.close()
