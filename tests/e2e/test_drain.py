"""A node leaves a running job in order (`fftrain drain`, a signal to its launcher): no iteration is lost, nor a bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import ENV, committed, pid_of, read_events, wait_for
from tests.e2e.on_hosts import assert_same, host_of, log, ready, start, three, uninterrupted
from tests.hosts import Hosts

__all__ = ["three", "uninterrupted"]  # fixtures
pytestmark = pytest.mark.slow


def training(place: Path, hosts: Hosts, pause: float = 1.0) -> dict[int, subprocess.Popen[Any]]:
    """Two nodes and a standby, which is host 2; they train."""
    started = start(place, hosts, standbys=(2,), pause=pause)
    wait_for(place, ready(2), 90)
    wait_for(place, committed(4))
    assert host_of(place, hosts, 1) == 1
    return started


def assert_no_iteration_was_lost(place: Path) -> None:
    """The first failover went on from what had been committed last, and nobody had begun anything after it."""
    events = read_events(place)
    halt = next(number for number, event in enumerate(events) if event["kind"] == "halt")
    newest = max(event["W"] for event in events[:halt] if event["kind"] == "commit")
    failover = next(event for event in events if event["kind"] == "failover")
    assert failover["v_star"] == newest and failover["newcomers"] == [2, 3] and failover["attempts"] == 1
    assert [e["step"] for e in events if e["kind"] == "drain"] == ["accepted", "released"]
    lost = [event for event in events if event["kind"] in ("node_lost", "unrecoverable", "restart")]
    assert lost == []


def test_by_hand(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    started = training(tmp_path, three, pause=2.5)  # the command takes long to start on a busy machine
    words = ["drain", "1", "--rdzv-endpoint", f"{three.addresses[0]}:29503", "--ff-config", str(tmp_path / "ff.json")]
    done = subprocess.run(
        [*three.words(0), sys.executable, "-m", "ff_core.launch.cli", *words],
        env=ENV, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fftrain: node 1 has left the job\n"), done.stderr
    assert started[1].wait(30) == 0, log(tmp_path, 1).read_text()[-3000:]
    assert "is drained: the job goes on without this node" in log(tmp_path, 1).read_text()
    assert started[0].wait(200) == 0, log(tmp_path, 0).read_text()[-4000:]
    assert started[2].wait(30) == 0
    assert_same(tmp_path, uninterrupted)
    assert_no_iteration_was_lost(tmp_path)


def test_by_a_signal_and_then_a_kill(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    """As a scheduler takes a node. Then rank 0 and one that has moved are killed: the copies are where they belong."""
    started = training(tmp_path, three)
    started[1].send_signal(signal.SIGTERM)
    assert started[1].wait(120) == 1, log(tmp_path, 1).read_text()[-3000:]
    wait_for(tmp_path, lambda events: [e for e in events if e["kind"] == "drain" and e["step"] == "released"])
    for rank in (0, 3):
        os.kill(pid_of(tmp_path, rank), signal.SIGKILL)
    assert started[0].wait(200) == 0, log(tmp_path, 0).read_text()[-4000:]
    assert started[2].wait(30) == 0
    assert_same(tmp_path, uninterrupted)
    assert_no_iteration_was_lost(tmp_path)
    assert "SIGTERM goes to the workers" not in log(tmp_path, 1).read_text()


def test_a_signal_without_a_standby(tmp_path: Path, three: Hosts) -> None:
    """As under torchrun: the workers of the node get it. What follows is a lost node."""
    started = start(tmp_path, three, (0, 1), place_timeout_s=1.0)
    wait_for(tmp_path, committed(4))
    started[1].send_signal(signal.SIGTERM)
    assert started[1].wait(60) == 1
    assert "SIGTERM goes to the workers: no standby and no spare" in log(tmp_path, 1).read_text()
    assert started[0].wait(60) == 69, log(tmp_path, 0).read_text()[-3000:]
