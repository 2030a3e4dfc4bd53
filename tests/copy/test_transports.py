from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ff_core.copy import transports
from ff_core.copy.transports import StreamChoice
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


FAR = ("10.0.0.1", "10.0.0.2")


@pytest.mark.parametrize(
    ("cores", "ranks", "holders", "count"),
    [
        (16, 1, 1, 8),
        (16, 2, 1, 4),
        (16, 3, 1, 2),
        (16, 8, 1, 1),
        (96, 8, 1, 6),
        (96, 8, 2, 3),
        (192, 8, 0, 8),
        (2, 1, 1, 1),  # one thread at either end is all that there is
        (1, 4, 2, 1),
    ],
)
def test_streams_to_another_host_share_the_cores(cores: int, ranks: int, holders: int, count: int) -> None:
    """Of its node's ranks; how many others the job has does not matter."""
    assert StreamChoice("auto", ranks, 64 * ranks, holders, cores).count(*FAR) == count


@pytest.mark.parametrize(
    ("near", "far"),
    [("127.0.0.1", "127.0.1.1"), ("::1", "::1"), ("10.0.0.1", "10.0.0.1")],  # the last one: another node of this host
)
def test_streams_within_a_host_share_it_with_all_ranks(near: str, far: str) -> None:
    assert StreamChoice("auto", 1, 2, 1, 16).count(near, far) == 4
    assert StreamChoice("auto", 1, 2, 1, 2).count(near, far) == 1
    assert StreamChoice("auto", 8, 16, 1, 16).count(near, far) == 1


def test_streams_of_an_address_with_a_scope() -> None:
    assert StreamChoice("auto", 1, 2, 1, 16).count("fe80::1%eth0", "fe80::2%eth0") == 8


def test_a_number_that_the_user_gave_is_taken() -> None:
    choice = StreamChoice(3, 8, 16, 1, 2)
    assert choice.count("127.0.0.1", "127.0.0.1") == choice.count(*FAR) == 3
    assert not choice.adaptive and StreamChoice().adaptive


@pytest.mark.parametrize(("cores", "world", "copiers"), [(16, 2, 4), (16, 4, 2), (16, 16, 1), (64, 2, 4), (2, 2, 1)])
def test_threads_that_copy_share_the_cores(cores: int, world: int, copiers: int) -> None:
    assert StreamChoice("auto", 1, world, 1, cores).copiers == copiers


def test_cores_are_those_that_the_process_may_use() -> None:
    assert StreamChoice().cores == len(os.sched_getaffinity(0))
