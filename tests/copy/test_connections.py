"""What makes a connection, and how one of several streams ends that can never be complete."""

from __future__ import annotations

import os
import socket

import pytest

from ff_core.copy.receiver import Receiver
from ff_core.errors import EngineError
from tests.copy.frames import REJECT, receive
from tests.copy.test_receiver import EPOCH, Peer
from tests.copy.test_streams import BEGIN, FIRST, LAST, NEXT, SECOND, Peers, quiet


@pytest.mark.parametrize(
    ("transport", "streams", "file", "message"),
    [
        ("rdma", 1, False, 'a connection over "rdma", known are tcp, shm and ucx'),
        ("shm", 2, True, "a connection of 2 streams, allowed are 1 to 1 over shm"),
        ("ucx", 2, False, "a connection of 2 streams, allowed are 1 to 1 over ucx"),
        ("tcp", 17, False, "a connection of 17 streams, allowed are 1 to 16 over tcp"),
        ("tcp", 1, True, "a peer's memory file, but not over shm: tcp"),
        ("shm", 1, False, "memory file"),
    ],
)
def test_descriptors_that_a_transport_has_no_use_for(transport: str, streams: int, file: bool, message: str) -> None:
    """They are closed all the same."""
    with Peer() as peer:
        pairs = [socket.socketpair() for _ in range(streams)]
        read, write = os.pipe()
        with pytest.raises(EngineError, match=message):
            fds = [far.detach() for _, far in pairs]
            peer.receiver.attach(fds, peer.arena, EPOCH, transport, write if file else -1)
        if not file:
            os.close(write)
        for near, _ in pairs:
            near.settimeout(60)
            assert near.recv(1) == b"", "closed"
            near.close()
        assert os.read(read, 1) == b"", "closed"
        os.close(read)


def test_a_closed_one_says_so() -> None:
    receiver = Receiver()
    assert receiver.is_open
    receiver.close()
    receiver.close()
    assert not receiver.is_open
    with pytest.raises(EngineError, match="the receiver is closed"):
        receiver.poll()


@pytest.mark.parametrize("blob_first", [False, True])
def test_streams_that_have_all_gone_on_bring_nothing_more(blob_first: bool) -> None:
    """A chunk is missing, and whoever could bring it is at a later version: no thread reads on, so none would notice
    that the peer closes."""
    with Peers() as peer:
        peer.on(0, BEGIN, FIRST, SECOND)
        steps = [(0, [LAST]), (1, NEXT[1:2]), (2, NEXT[2:3])]
        for stream, frames in steps if blob_first else reversed(steps):
            assert quiet(peer.sock)
            peer.on(stream, *frames)
        refusal = receive(peer.sock)
        assert refusal is not None and refusal.type == REJECT and refusal.data == b"BLOB after 2 of 3 chunks"
        assert peer.end().error == "protocol"
        assert peer.arena.find(EPOCH, 9) is None
