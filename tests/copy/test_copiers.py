"""Several threads that copy out of a sender's shared memory: all of them, in any order, through every kind of end."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.receiver import Receiver
from ff_core.errors import EngineError
from tests.copy import frames
from tests.copy.rig import Live, Rig, eventually, shared_pair
from tests.copy.test_receiver import EPOCH, Peer
from tests.copy.test_streams import BEGIN, FIRST, JOURNAL, LAST, SECOND, THIRD

MANY = partial(frames.Shared, copiers=4)


def receiving_threads() -> set[str]:
    """Names of this process's threads that receive."""
    names = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            names.add((task / "comm").read_text().strip())
    return {name for name in names if name.startswith("ff-recv")}


def all_joined() -> None:
    """The kernel may list a thread for a moment that has been joined."""
    eventually(lambda: receiving_threads() == set(), "the end of all threads that receive")


def test_there_are_so_many_and_they_are_joined() -> None:
    with Peer(MANY) as peer:
        eventually(lambda: receiving_threads() == {"ff-recv", "ff-recv-1", "ff-recv-2", "ff-recv-3"})
        peer.deliver(1)
        peer.receiver.detach(peer.arena)
        all_joined()


@pytest.mark.parametrize("copiers", [1, 2, 16])
def test_every_version_is_whole(copiers: int) -> None:
    with Rig(sent=3_000_000, local=0) as rig:
        rig.copiers = copiers
        rig.connect(1, (shared_pair,))
        for version in range(6):
            content = rig.run(version % 2, 1, version)
            slot = rig.holders[0].find(1, version)
            assert slot is not None and rig.restored(rig.holders[0], slot) == content


def test_without_checksums() -> None:
    with Rig(sent=3_000_000, local=0, checksum=False) as rig:
        rig.copiers = 3
        rig.connect(1, (shared_pair,))
        content = rig.run(0, 1, 0)
        assert rig.restored(rig.holders[0], 0) == content and not rig.holders[0].slot_info(0).checksummed


def test_a_version_that_lacks_a_chunk_is_refused() -> None:
    """BLOB waits for what is being copied, and not for what nobody has announced."""
    with Peer(MANY) as peer:
        peer.deliver(8)
        peer.send(BEGIN, FIRST, SECOND, LAST)
        peer.refused("BLOB after 2 of 3 chunks")
        assert peer.arena.find(EPOCH, 8) is not None and peer.arena.find(EPOCH, 9) is None


def test_chunks_are_announced_in_order() -> None:
    with Peer(MANY) as peer:
        peer.send(BEGIN, FIRST, THIRD)
        peer.refused("CHUNK 2, expected 1 of 3")


def test_memory_that_changes_before_it_is_copied() -> None:
    """The sender was cancelled and writes the next version there: what arrives is refused."""
    with Peer(MANY) as peer:
        peer.deliver(8)
        peer.send(BEGIN, FIRST)
        assert isinstance(peer.carrier, frames.Shared)
        second = peer.carrier.encode(SECOND)
        peer.carrier.scribble(SECOND.data[:-1] + b"?")
        peer.sock.sendall(second + peer.carrier.encode(THIRD) + peer.carrier.encode(LAST))
        status = peer.end()
        assert status.error == "protocol" and f"CHUNK 1 of version ({EPOCH}, 9): checksum" in status.message
        assert peer.arena.find(EPOCH, 8) is not None and peer.arena.find(EPOCH, 9) is None


@pytest.mark.parametrize("until", range(4))
def test_the_peer_closes_within_a_version(until: int) -> None:
    with Peer(MANY) as peer:
        peer.deliver(8)
        peer.send(*(BEGIN, FIRST, SECOND, THIRD)[: until + 1])
        peer.sock.close()
        status = peer.end()
        assert (status.error, status.message) == ("i/o", f"the peer closed in the middle of version ({EPOCH}, 9)")
        assert peer.arena.find(EPOCH, 8) is not None and peer.arena.find(EPOCH, 9) is None


def test_the_peer_closes_between_versions() -> None:
    with Peer(MANY) as peer:
        peer.deliver(8)
        peer.sock.close()
        assert peer.end().error == ""


@pytest.mark.parametrize(("transport", "copiers", "most"), [("shm", 17, 16), ("shm", 2**32 - 1, 16)])
def test_too_many(transport: str, copiers: int, most: int) -> None:
    with Peer(MANY) as peer:
        near, far = socket.socketpair()
        with pytest.raises(EngineError, match=f"{copiers} threads that copy, at most {most} over {transport}"):
            peer.receiver.attach(far.detach(), peer.arena, EPOCH, transport, peer.carrier.peers_file(), copiers)
        near.settimeout(60)
        assert near.recv(1) == b"", "closed"
        near.close()


def test_retired_while_they_copy() -> None:
    with Rig(sent=30_000_000, local=0, chunk=1 << 20) as rig:
        rig.copiers = 4
        for attempt in range(12):
            rig.connect(attempt, (shared_pair,))
            rig.writer.begin(0, attempt, 0)
            time.sleep(attempt * 0.0005)
            rig.receiver.retire_before(attempt + 1)
            before = rig.holders[0].slot_infos()
            rig.writer.cancel()
            assert rig.holders[0].slot_infos() == before
            all_joined()
            assert rig.holders[0].find(attempt, 0) is None, "it was never sealed"


SENDING = """
import ctypes, os, socket, sys
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.writer import Writer

size = 8_000_000
arena, sock = Arena.from_fd(int(sys.argv[1])), int(sys.argv[2])
memory = ctypes.create_string_buffer(size)
writer = Writer(arena)
writer.add_holder(sock, "shm")
writer.set_segments([(ctypes.addressof(memory), size, 0, -1)])
print("ready", flush=True)
for version in range(1 << 30):
    ctypes.memset(memory, version % 251, size)
    writer.begin(version % 2, 1, version)
    writer.seal(version, b"scalars")
    while writer.stats().versions <= version:
        pass
"""


def test_a_sender_is_killed_at_any_moment() -> None:
    """What its holder has as complete is whole, and so it stays when a successor gets the memory."""
    draw = random.Random(3)
    size = 8_000_000
    for _ in range(4):
        own, replica = (Arena.create(ArenaLayout(0, size)) for _ in range(2))
        near, far = shared_pair()
        receiver = Receiver()
        receiver.attach(far.detach(), replica, 1, "shm", os.dup(own.fd), 3)
        words = [sys.executable, "-c", SENDING, str(own.fd), str(near.fileno())]
        pipes = {"stdout": subprocess.PIPE, "pass_fds": (own.fd, near.fileno())}
        with subprocess.Popen(words, **pipes) as sender:  # type: ignore[call-overload]
            near.close()
            assert sender.stdout.readline() == b"ready\n"
            eventually(lambda found=receiver: found.poll()[0].last_stamp > 0)
            time.sleep(draw.random() * 0.05)
            sender.kill()
        eventually(lambda found=receiver: not found.poll()[0].open)
        all_joined()
        complete = [slot for slot, info in enumerate(replica.slot_infos()) if info.complete]
        assert complete
        for slot in complete:
            out = Live(size)
            replica.restore(slot, out.segments())
            assert bytes(out.memory) == bytes([replica.slot_info(slot).version % 251]) * size
        for owner in (receiver, own, replica):
            owner.close()


def test_nothing_behind_a_bad_frame_counts() -> None:
    """Whichever thread has read it, and although the peer stays."""
    bad = frames.Frame(frames.BEGIN, EPOCH, 9, b"", flags=1)
    for _ in range(20):
        with Peer(MANY) as peer:
            peer.deliver(8)
            before = peer.arena.slot_infos()
            peer.send(bad, JOURNAL, BEGIN, FIRST, SECOND, THIRD, LAST)
            peer.refused("BEGIN of 0 bytes, expected 16")
            assert peer.arena.slot_infos() == before and not peer.arena.journal()
