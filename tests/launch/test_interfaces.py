"""Which interface the nodes reach each other by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ff_core.launch import interfaces
from ff_core.launch.interfaces import give_gloo_an_interface, interface_with


def test_the_interface_with_an_address() -> None:
    assert interface_with("127.0.0.1") == "lo"
    assert interface_with("192.0.2.1") == ""
    if any(line.endswith("lo") for line in Path("/proc/net/if_inet6").read_text().splitlines()):
        assert interface_with("::1") == "lo"


def test_gloo_gets_it_unless_the_user_has_said_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "interface_with", lambda address: "eth7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    give_gloo_an_interface("10.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    for nothing in ("127.0.0.1", "::1", "node7"):
        give_gloo_an_interface(nothing)
        assert "GLOO_SOCKET_IFNAME" not in os.environ
    give_gloo_an_interface("10.0.0.1")
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "eth7"
