from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from ff_core.copy import transports
from ff_core.csrc import build
from ff_core.errors import ConfigError


def test_auto_tries_the_fastest_first_and_ucx_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert transports.candidates("auto") == ("shm", "tcp")
    assert transports.candidates("tcp") == ("tcp",)
    assert transports.candidates("shm") == ("shm",)
    monkeypatch.setattr(transports, "missing_for_ucx", lambda: "")
    assert transports.candidates("ucx") == ("ucx",)
    monkeypatch.setattr(transports, "missing_for_ucx", lambda: "it is not there")
    with pytest.raises(ConfigError, match="transport = 'ucx': it is not there; allowed without it: auto, shm, tcp"):
        transports.candidates("ucx")


def test_rdma_that_lies_idle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "rdma_ports", lambda: "mlx5_0:1")
    monkeypatch.setattr(transports, "missing_for_ucx", lambda: "")
    assert "mlx5_0:1" in transports.advice("auto") and transports.advice("tcp") == ""
    monkeypatch.setattr(transports, "missing_for_ucx", lambda: "it is not there")
    assert transports.advice("auto") == ""


def test_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "build_info", lambda: '{"transports": ["tcp"]}')
    with pytest.raises(ConfigError, match=r"transport = 'shm'.*has tcp.*allowed"):
        transports.candidates("shm")


def test_rdma_ports_that_are_up(tmp_path: Path) -> None:
    assert transports.rdma_ports(bytes(tmp_path / "infiniband")) == ""
    states = {"mlx5_0/ports/1": "4: ACTIVE\n", "mlx5_0/ports/2": "1: DOWN\n", "mlx5_1/ports/1": "2: INIT\n"}
    for port, state in states.items():
        (tmp_path / port).mkdir(parents=True)
        (tmp_path / port / "state").write_text(state)
    assert transports.rdma_ports(bytes(tmp_path)) == "mlx5_0:1"
    (tmp_path / "mlx5_1/ports/1/state").write_text("4: ACTIVE\n")
    assert transports.rdma_ports(bytes(tmp_path)) == "mlx5_0:1 mlx5_1:1"


def asked(library: str) -> str:
    """What a process with this $FF_UCX_LIBRARY misses."""
    code = "from ff_core.copy.transports import missing_for_ucx; print(missing_for_ucx())"
    environment = {**os.environ, "FF_UCX_LIBRARY": library}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout.strip()


def test_ucx_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert "UCX cannot be loaded (/nowhere/libucp.so" in asked("/nowhere/libucp.so")
    source = tmp_path / "old.c"
    source.write_text("void ucp_get_version(unsigned*a,unsigned*b,unsigned*c){*a=1;*b=9;*c=2;}\n")
    library = tmp_path / "libold.so"
    subprocess.run([*build.compiler(), "-x", "c", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    said = asked(str(library))
    assert f"UCX ({library}) is version 1.9.2, needed is 1.13 or a later 1.x; it lacks ucp_config_read" in said


@pytest.mark.parametrize(
    ("wanted", "emulated", "offered"),
    [
        ("auto", False, True),
        ("auto", True, False),  # emulated nodes stand for different hosts
        ("shm", True, True),  # unless told otherwise
        ("shm", False, True),
        ("tcp", False, False),
        ("tcp", True, False),
    ],
)
def test_who_offers_shared_memory(wanted: str, emulated: bool, offered: bool) -> None:
    assert transports.listens_shared(wanted, emulated) is offered


@pytest.mark.parametrize(
    ("wanted", "ranks", "near", "far", "count"),
    [
        ("auto", 1, "10.0.0.1", "10.0.0.2", 4),
        ("auto", 2, "10.0.0.1", "10.0.0.2", 4),
        ("auto", 3, "10.0.0.1", "10.0.0.2", 2),
        ("auto", 8, "fd00::1", "fd00::2", 1),
        ("auto", 16, "10.0.0.1", "10.0.0.2", 1),
        ("auto", 1, "127.0.0.1", "127.0.1.1", 1),
        ("auto", 1, "::1", "::1", 1),
        ("auto", 1, "10.0.0.1", "10.0.0.1", 1),  # another node of this host
        ("auto", 1, "fe80::1%eth0", "fe80::2%eth0", 4),
        (3, 8, "127.0.0.1", "127.0.0.1", 3),
    ],
)
def test_how_many_streams(wanted: int | Literal["auto"], ranks: int, near: str, far: str, count: int) -> None:
    assert transports.StreamChoice(wanted, ranks).count(near, far) == count
