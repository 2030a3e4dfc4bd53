"""Jobs on several hosts: the command on each, and what the tests of them ask."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import jobs
from tests.e2e.jobs import ENV, TOY, agent_pid, results_of, toy
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


def command(
    place: Path, hosts: Hosts, number: int, *options: str, pause: float = 0.7, **settings: Any
) -> list[str]:  # fmt: skip
    """The same on every host, but for what `options` add and the stand-in's address."""
    config = place / "ff.json"
    config.write_text(json.dumps({"enabled": True, "secret": "a secret of sixteen", **settings}))
    own = [] if hosts.real else ["--local-addr", hosts.addresses[number]]
    return [
        sys.executable, "-m", "ff_core.launch.cli", "run", "--nproc-per-node", "2", "--ff-config", str(config),
        "--rdzv-endpoint", f"{hosts.addresses[0]}:29503", "--out-dir", str(place), *own, *options,
        *toy(place, ITERATIONS, "--pause", str(pause), "--hurry", str(place / "hurry")),
    ]  # fmt: skip


def hurry(place: Path) -> None:
    """Nothing else is to happen to the job: it need not train slowly any more."""
    (place / "hurry").touch()


def log(place: Path, number: int) -> Path:
    return place / f"host{number}.txt"


def assert_same(place: Path, wanted: dict[int, Any]) -> None:
    ours = results_of(place / "results")
    assert sorted(ours) == sorted(wanted) == [0, 1, 2, 3]
    for rank in wanted:
        assert ours[rank]["losses"] == wanted[rank]["losses"]
        assert ours[rank]["digest"] == wanted[rank]["digest"], f"rank {rank} differs"


def start(
    place: Path,
    hosts: Hosts,
    numbers: Collection[int] = (0, 1, 2),
    standbys: Collection[int] = (),
    pause: float = 0.7,
    **settings: Any,
) -> dict[int, subprocess.Popen[Any]]:
    """A job of two nodes on hosts `numbers`. Host 0 comes first, the others when it waits for them."""
    started = {}
    for number in numbers:
        options = ["--nnodes", "2", *(["--standby"] if number in standbys else [])]
        words = command(place, hosts, number, *options, pause=pause, **settings)
        started[number] = hosts.start(number, words, log(place, number), ENV)
        if number == 0:
            wait_until_said(place, 0, "still to come")
    return started


def host_of(place: Path, hosts: Hosts, node: int) -> int:
    """Which of `hosts` is `node` of the job."""
    return next(number for number in range(3) if agent_pid(place, node) in hosts.pids(number))


def ready(node: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether both spares of a standby are."""
    return lambda events: sum(event["kind"] == "spare_ready" and event["node"] == node for event in events) >= 2


def wait_until_said(place: Path, number: int, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in log(place, number).read_text():
        assert time.monotonic() < deadline, log(place, number).read_text()
        time.sleep(0.05)
