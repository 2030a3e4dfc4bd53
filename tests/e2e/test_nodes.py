"""Jobs on several hosts (network namespaces): one command on each, hosts that are lost, standbys."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import jobs
from tests.e2e.jobs import ENV, TOY, committed, read_events, results_of, toy, wait_for
from tests.hosts import Hosts

ITERATIONS = 24


@pytest.fixture
def three() -> Iterator[Hosts]:
    with Hosts(3) as hosts:
        yield hosts


@pytest.fixture
def uninterrupted() -> dict[int, Any]:
    """The results of the same training under plain torchrun, by rank."""
    return results_of(jobs.uninterrupted(str(TOY), ("--iterations", "24"), lambda folder: ("--out", str(folder))))


def command(place: Path, hosts: Hosts, number: int, *options: str) -> list[str]:
    """The same on every host, but for what `options` add and the stand-in's address."""
    config = place / "ff.json"
    config.write_text(json.dumps({"enabled": True, "secret": "a secret of sixteen"}))
    own = [] if hosts.real else ["--local-addr", hosts.addresses[number]]
    return [
        sys.executable, "-m", "ff_core.launch.cli", "run", "--nproc-per-node", "2", "--ff-config", str(config),
        "--rdzv-endpoint", f"{hosts.addresses[0]}:29503", "--out-dir", str(place), *own, *options,
        *toy(place, ITERATIONS, "--pause", "0.7"),
    ]  # fmt: skip


def log(place: Path, number: int) -> Path:
    return place / f"host{number}.txt"


def assert_same(place: Path, wanted: dict[int, Any]) -> None:
    ours = results_of(place / "results")
    assert sorted(ours) == sorted(wanted) == [0, 1, 2, 3]
    for rank in wanted:
        assert ours[rank]["losses"] == wanted[rank]["losses"]
        assert ours[rank]["digest"] == wanted[rank]["digest"], f"rank {rank} differs"


def test_a_host_is_lost_and_the_standby_takes_its_ranks(
    tmp_path: Path, three: Hosts, uninterrupted: dict[int, Any]
) -> None:
    """All processes of host 1 are killed, its launcher too. Losses are those of plain torchrun, to the bit."""
    order = (1, 2, 0) if three.real else (0, 1, 2)  # who comes before the controller waits for it
    started = {}
    for number in order:
        options = ["--nnodes", "2", *(["--standby"] if number == 2 else [])]
        started[number] = three.start(number, command(tmp_path, three, number, *options), log(tmp_path, number), ENV)
        if number != order[-1] and (three.real or number == 0):
            wait_until_said(tmp_path, number, "yet; asking again" if three.real else "nodes are still to come")
    ready = {"kind": "spare_ready", "node": 2}
    wait_for(tmp_path, lambda events: sum({**e, **ready} == e for e in events) >= 2, 60)
    wait_for(tmp_path, committed(4))
    three.power_off(1)
    said = {number: log(tmp_path, number) for number in order}
    assert started[0].wait(200) == 0, said[0].read_text()[-4000:]
    assert started[2].wait(30) == 0, said[2].read_text()[-4000:]
    assert_same(tmp_path, uninterrupted)
    events = read_events(tmp_path)
    (failover,) = [event for event in events if event["kind"] == "failover"]
    assert failover["newcomers"] == [2, 3] and failover["spare"] == "warm"
    moved = [event["node"] for event in events if event["kind"] == "worker_start" and event["rank"] in (2, 3)]
    assert moved == [1, 1, 2, 2]
    assert "stands by" in said[0].read_text()


def wait_until_said(place: Path, number: int, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in log(place, number).read_text():
        assert time.monotonic() < deadline, log(place, number).read_text()
        time.sleep(0.05)
