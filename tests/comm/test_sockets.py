"""Only group sockets are ever cut, and never a listener."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from ff_core.comm import GroupRegistry, compat
from ff_core.comm.sockets import GroupSockets


def connection(port: int = 0) -> tuple[socket.socket, socket.socket, socket.socket]:
    """(listener, client, accepted)."""
    listener = socket.create_server(("127.0.0.1", port))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    return listener, client, accepted


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    sockets = connection()
    yield sockets
    for item in sockets:
        item.close()


def open_both_ways(client: socket.socket, accepted: socket.socket) -> bool:
    try:
        client.sendall(b"x")
        accepted.sendall(b"y")
        return accepted.recv(1) == b"x" and client.recv(1) == b"y"
    except OSError:
        return False


def test_foreign_connections_are_left_alone(
    registry: GroupRegistry, pair: tuple[socket.socket, socket.socket, socket.socket]
) -> None:
    registry.halt(1)
    assert open_both_ways(pair[1], pair[2])
    store = registry.host.connect_store(60.0)
    store.set("key", "value")
    registry.halt(2)
    assert store.get("key") == b"value"
    assert registry.client.get().check(["key"])


def test_connections_to_a_peer_are_cut(pair: tuple[socket.socket, socket.socket, socket.socket]) -> None:
    listener, client, accepted = pair
    sockets = GroupSockets()
    sockets.set_peer(3, [listener.getsockname()])
    assert sockets.connected() == [client.fileno()]
    assert sockets.shutdown() == 1
    assert accepted.recv(1) == b""
    assert client.recv(1) == b""
    again = socket.create_connection(listener.getsockname())  # the listener was not touched
    again.close()


def test_what_has_arrived_is_dropped(pair: tuple[socket.socket, socket.socket, socket.socket]) -> None:
    listener, client, accepted = pair
    sockets = GroupSockets()
    sockets.set_peer(3, [listener.getsockname()])
    accepted.sendall(b"x" * 100_000)
    assert select.select([client], [], [], 10)[0]
    sockets.shutdown()
    assert client.recv(1) == b""


def test_a_peer_that_moved_is_forgotten(pair: tuple[socket.socket, socket.socket, socket.socket]) -> None:
    listener, client, accepted = pair
    sockets = GroupSockets()
    sockets.set_peer(3, [listener.getsockname()])
    sockets.set_peer(3, [("127.0.0.1", 1)])
    assert sockets.shutdown() == 0
    assert open_both_ways(client, accepted)


def test_a_listener_with_a_closed_ones_descriptor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread closes a listener while the device is made: the device's gets its number."""
    old = socket.create_server(("127.0.0.1", 0))
    made: list[socket.socket] = []

    def device(name: str | None) -> object:
        number = old.detach()
        os.close(number)
        made.append(socket.create_server(("127.0.0.1", 0)))
        assert made[0].fileno() == number
        return object()

    monkeypatch.setattr(compat, "gloo_device", device)
    with contextlib.ExitStack() as stack:
        sockets = GroupSockets()
        addresses = sockets.own_addresses()
        stack.callback(made[0].close)
        assert addresses == [made[0].getsockname()]


def test_own_listener_is_found_and_left_open(registry: GroupRegistry) -> None:
    ((host, port),) = registry._sockets.own_addresses()
    registry.halt(1)
    socket.create_connection((host, port), timeout=10).close()
    registry.drop()
    registry.regroup(1)
    value = torch.ones(1)
    dist.all_reduce(value)
    assert value.item() == 1.0
