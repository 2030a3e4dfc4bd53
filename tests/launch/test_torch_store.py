"""The store that the launcher hosts."""

from __future__ import annotations

import socket

import pytest

from ff_core.errors import ConfigError
from ff_core.launch.torch_store import find_controller, host_store, interface_of, local_address, publish_controller


def test_any_free_port_on_loopback_only() -> None:
    store, port = host_store("127.0.0.1", 0)
    assert port > 0
    publish_controller(store, ("10.0.0.1", 77))
    assert find_controller("127.0.0.1", port, 30.0) == ("10.0.0.1", 77)
    with socket.socket() as other:
        # The same port of another loopback address is free: the store does not listen on all interfaces.
        other.bind(("127.0.0.2", port))


def test_localhost_and_a_named_port() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store, got = host_store("localhost", port)
    assert got == port
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is taken.*--master-port"):
            host_store("127.0.0.1", port)


def test_an_address_of_nobody() -> None:
    with pytest.raises(ConfigError, match=r"no\.such\.host\.invalid"):
        host_store("no.such.host.invalid", 0)
    with pytest.raises(ConfigError, match="no answer from node 0"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            find_controller("127.0.0.1", probe.getsockname()[1], 1.0)


def test_interfaces() -> None:
    assert interface_of("127.0.0.1") == interface_of("localhost") == "127.0.0.1"
    assert interface_of("192.0.2.1") == "0.0.0.0"  # a documentation address: no machine has it
    assert local_address(("127.0.0.1", 1)) == "127.0.0.1"
