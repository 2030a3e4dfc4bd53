"""Jobs on several hosts whose node 0 falls silent: no packet comes from it, and nobody can tell whether it lives."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import committed, read_events, wait_for
from tests.e2e.on_hosts import assert_same, hurry, log, start, three, uninterrupted, wait_until_said
from tests.e2e.test_takeover import assert_ended_well, assert_taken_over, begun, seen
from tests.hosts import Hosts

__all__ = ["three", "uninterrupted"]  # fixtures


@pytest.fixture
def cables(three: Hosts) -> Hosts:
    if not three.real:
        pytest.skip("the stand-in's hosts have no cables")
    return three


def assert_comes_again(place: Path, started: dict[int, Any], wanted: dict[int, Any]) -> None:
    """The others have gone on. Host 0 is told so, and stands by as another node."""
    wait_until_said(place, 0, "the job goes on without this node")
    wait_for(place, seen("node_start", node=3), 60)
    hurry(place)
    assert_ended_well(place, started, 0, 1, 2)
    assert_same(place, wanted)
    events = read_events(place)
    assert_taken_over(events)
    assert seen("node_lost", node=0, reason="it is silent")(events)
    assert sum(event["kind"] == "job_end" for event in events) == 1


def test_the_cable_of_node_0_is_pulled(tmp_path: Path, cables: Hosts, uninterrupted: dict[int, Any]) -> None:
    """Two nodes and a standby are a majority without it. Losses are those of plain torchrun, to the bit. Its cable is
    plugged in again."""
    started = begun(tmp_path, cables, pause=2.5)  # it is to train until host 0 is there again
    cables.unplug(0)
    wait_for(tmp_path, seen("takeover", node=1), 60)
    wait_until_said(tmp_path, 0, "node 1, 2 cannot be heard from node 0, and may go on without it")
    wait_until_said(tmp_path, 0, "waiting 600 s to hear where the job is")
    cables.plug_in(0)
    assert_comes_again(tmp_path, started, uninterrupted)


@pytest.mark.slow
def test_all_of_node_0_stands_still_and_goes_on(tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]) -> None:
    """As a machine that is paused. It finds that others have left it, and have its folder of versions."""
    started = begun(tmp_path, three, pause=2.5, persist_dir=str(tmp_path / "versions"), persist_interval_s=2.0)
    for pid in three.pids(0):
        os.kill(pid, signal.SIGSTOP)
    wait_for(tmp_path, seen("takeover", node=1), 60)
    for pid in three.pids(0):
        os.kill(pid, signal.SIGCONT)
    assert_comes_again(tmp_path, started, uninterrupted)


@pytest.mark.slow
def test_two_nodes_are_no_majority(tmp_path: Path, cables: Hosts) -> None:
    """Nobody takes over, and both logs say what would help. Node 0 may live, and does."""
    started = start(tmp_path, cables, (0, 1), pause=0.9)
    wait_for(tmp_path, committed(4))
    assert log(tmp_path, 0).read_text().count("With a third node, such as one with --standby") == 1
    cables.unplug(0)
    wait_until_said(tmp_path, 1, "of two nodes one is no majority. With a third one, such as one with --standby")
    wait_until_said(tmp_path, 1, "ending this node's workers")
    assert not seen("takeover")(read_events(tmp_path))
    assert started[0].poll() is None
