"""Jobs on several hosts whose node 0 is killed, with the controller and torch's store: another host has them then."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import ENV, committed, read_events, wait_for
from tests.e2e.on_hosts import (
    assert_same,
    command,
    log,
    ready,
    start,
    three,
    uninterrupted,
    wait_until_said,
)  # fmt: skip
from tests.hosts import Hosts

__all__ = ["three", "uninterrupted"]  # fixtures


def begun(place: Path, hosts: Hosts) -> dict[int, Any]:
    """Two nodes train and the third host stands by, with both spares ready."""
    started = start(place, hosts, (0, 1), pause=0.9)
    words = command(place, hosts, 2, "--nnodes", "2", "--standby", pause=0.9)
    started[2] = hosts.start(2, words, log(place, 2), ENV)
    wait_for(place, ready(2), 90)
    wait_for(place, committed(4))
    return started


def assert_taken_over(place: Path, started: dict[int, Any], uninterrupted: dict[int, Any]) -> None:
    """Host 1 has the controller, and host 2 plays the ranks of host 0. Losses are plain torchrun's, to the bit."""
    assert started[1].wait(200) == 0, log(place, 1).read_text()[-6000:]
    assert started[2].wait(30) == 0, log(place, 2).read_text()[-6000:]
    assert_same(place, uninterrupted)
    events = read_events(place)
    (takeover,) = [event for event in events if event["kind"] == "takeover"]
    (failover,) = [event for event in events if event["kind"] == "failover"]
    assert takeover["node"] == 1 and takeover["lost"] == [0] and takeover["epoch"] == failover["epoch"] == 1024
    assert failover["newcomers"] == [0, 1] and failover["spare"] == "warm"
    assert failover["v_star"] >= max(e["W"] for e in events if e["kind"] == "commit" and e["epoch"] == 0)


def test_the_launcher_of_node_0_is_killed(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    """SIGKILL for this one process. Its agent and its workers end with it."""
    started = begun(tmp_path, three)
    os.kill(started[0].pid, signal.SIGKILL)
    assert_taken_over(tmp_path, started, uninterrupted)
    assert three.pids(0) == []


@pytest.mark.slow
def test_all_of_node_0_is_killed(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    started = begun(tmp_path, three)
    three.power_off(0)
    assert_taken_over(tmp_path, started, uninterrupted)
    assert "the launcher of node 0 is dead" in log(tmp_path, 1).read_text()


@pytest.mark.slow
def test_node_0_is_cut_off_and_lives(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    """Its cable is pulled. Nobody takes over: it may live, and does."""
    if not three.real:
        pytest.skip("the stand-in's hosts have no cables")
    started = begun(tmp_path, three)
    three.unplug(0)
    for number in (1, 2):
        wait_until_said(tmp_path, number, "ending this node's workers")
    assert not any(event["kind"] == "takeover" for event in read_events(tmp_path))
    assert started[0].poll() is None
