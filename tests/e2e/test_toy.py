"""Whole jobs with the toy trainer: what the core promises, without any framework."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.copy.rig import UCX
from tests.e2e.jobs import ENV, Job, agent_pid, committed, fftrain, pid_of, reference, toy, wait_for

NODES = ("--emulate-nodes", "2")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = reference(tmp_path_factory.mktemp("reference"), 24)
    assert job.code == 0, job.stderr
    return job


def assert_same(job: Job, reference: Job) -> None:
    assert job.code == 0, job.stderr[-4000:]
    ours, theirs = job.results(), reference.results()
    assert sorted(ours) == sorted(theirs) == [0, 1, 2, 3]
    for rank in theirs:
        assert ours[rank]["losses"] == theirs[rank]["losses"]
        assert ours[rank]["digest"] == theirs[rank]["digest"], f"rank {rank} differs"


def test_every_point_and_every_rank(tmp_path: Path, uninterrupted: Job) -> None:
    kills = [
        (2, 3, "forward"),
        (0, 6, "backward"),
        (1, 9, "step"),
        (3, 12, "after-step"),
        (0, 15, "copying"),
        (2, 18, "step"),
    ]
    options = [
        word
        for rank, iteration, at in kills
        for word in ("--inject", f"kill rank={rank} iteration={iteration} at={at}")
    ]
    job = fftrain(tmp_path, toy(tmp_path, 24), *NODES, "--spares", "1", *options)
    assert_same(job, uninterrupted)
    assert "replicas travel by tcp" in job.stderr  # emulated nodes stand for different hosts
    assert [event["dead"] for event in job.of("failover")] == [[rank] for rank, _, _ in kills]
    for event, (_, iteration, at) in zip(job.of("failover"), kills, strict=True):
        # Before the gate, the copy of the version before may still be under way (a slow machine); behind it, not.
        oldest = iteration - 2 if at in ("forward", "backward") else iteration - 1
        assert oldest <= event["v_star"] <= iteration
        assert set(event["phases"]) == {"detect", "halt", "verdict", "join", "regroup", "restore", "resume"}


def kill_agent_after(version: int) -> Callable[[Path, subprocess.Popen[str]], None]:
    """Node 1 is lost when `version` is committed."""

    def kill_agent(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(version))
        os.kill(agent_pid(out, 1), signal.SIGKILL)

    return kill_agent


def test_loss_of_a_whole_node(tmp_path: Path, uninterrupted: Job) -> None:
    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, meanwhile=kill_agent_after(6))
    assert_same(job, uninterrupted)
    (event,) = job.of("failover")
    assert event["newcomers"] == [2, 3]
    assert job.of("coverage")[-1]["degraded"]


@pytest.mark.parametrize(
    ("settings", "transport"),
    [
        ({"transport": "shm"}, "shm"),
        ({"tcp_streams": 3, "chunk_bytes": 4096}, "tcp (3 streams)"),
        pytest.param({"transport": "ucx"}, "ucx", marks=[UCX, pytest.mark.slow]),
    ],
    ids=["shm", "streams", "ucx"],
)
def test_transport_between_emulated_nodes(
    tmp_path: Path, uninterrupted: Job, settings: dict[str, object], transport: str
) -> None:
    """Only where it is asked for; a rank, then a whole node is lost."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings))
    words = ("--ff-config", str(config), "--inject", "kill rank=2 iteration=6 at=backward")
    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, *words, meanwhile=kill_agent_after(12))
    assert_same(job, uninterrupted)
    assert f"replicas travel by {transport}" in job.stderr
    assert len(job.of("failover")) == 2


def test_ucx_that_is_not_there_ends_the_job_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENV, "FF_UCX_LIBRARY", str(tmp_path / "libucp.so.0"))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"transport": "ucx"}))
    job = fftrain(tmp_path, toy(tmp_path, 24), *NODES, "--ff-config", str(config))
    assert job.code != 0
    assert f"transport = 'ucx': UCX cannot be loaded ({tmp_path}/libucp.so.0: cannot open shared object" in job.stderr
    assert "allowed without it: auto, shm, tcp" in job.stderr


def test_random_moments(tmp_path: Path, uninterrupted: Job) -> None:
    rng = random.Random(20261123)

    def kill_now_and_then(out: Path, process: subprocess.Popen[str]) -> None:
        for number in range(4):
            wait_for(out, committed(3 + 5 * number))
            time.sleep(rng.uniform(0.0, 0.3))
            os.kill(pid_of(out, rng.randrange(4)), signal.SIGKILL)
            wait_for(out, lambda events, n=number: sum(e["kind"] == "failover" for e in events) > n)

    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, "--spares", "1", meanwhile=kill_now_and_then)
    assert_same(job, uninterrupted)
    assert len(job.of("failover")) == 4


def test_two_at_once(tmp_path: Path, uninterrupted: Job) -> None:
    """Rank 0 and its node's neighbour die together, then one more while the others recover."""

    def kill_pair(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(8))
        for rank in (0, 1):
            os.kill(pid_of(out, rank), signal.SIGKILL)
        wait_for(out, lambda events: any(e["kind"] == "halt" for e in events))
        os.kill(pid_of(out, 3), signal.SIGKILL)

    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, meanwhile=kill_pair)
    assert_same(job, uninterrupted)
    assert {rank for event in job.of("failover") for rank in event["dead"]} == {0, 1, 3}


def test_corrupt_slots_are_never_loaded(tmp_path: Path, uninterrupted: Job) -> None:
    job = fftrain(
        tmp_path,
        toy(tmp_path, 24),
        *NODES,
        "--inject",
        "corrupt-slot rank=1 iteration=7 at=forward slot=own",
        "--inject",
        "kill rank=1 iteration=7 at=forward",
    )
    assert_same(job, uninterrupted)
    assert job.of("bad_slot"), "the damaged slot was not noticed"


def test_relaxed_and_sparse(tmp_path: Path, uninterrupted: Job) -> None:
    (tmp_path / "ff.json").write_text('{"enabled": true, "interval": 3, "commit": "relaxed"}')
    job = fftrain(
        tmp_path,
        toy(tmp_path, 24),
        *NODES,
        "--ff-config",
        str(tmp_path / "ff.json"),
        "--inject",
        "kill rank=3 iteration=8 at=backward",
        "--inject",
        "kill rank=0 iteration=14 at=after-step",
    )
    assert_same(job, uninterrupted)
    assert all(event["v_star"] % 3 == 0 for event in job.of("failover"))


def test_paced(tmp_path: Path, uninterrupted: Job) -> None:
    """Versions are sent slowly on purpose: deaths while one is on its way change nothing."""
    config = tmp_path / "ff.json"
    config.write_text('{"pacing": true}')
    kills = ("kill rank=2 iteration=15 at=copying", "kill rank=0 iteration=19 at=backward")
    options = [word for kill in kills for word in ("--inject", kill)]
    script = toy(tmp_path, 24, "--pause", "0.1")
    job = fftrain(tmp_path, script, *NODES, "--spares", "1", "--ff-config", str(config), *options)
    assert_same(job, uninterrupted)
    survivors = [event for event in job.of("rank_stats") if event["rank"] in (1, 3)]
    assert len(survivors) == 2
    for event in survivors:  # the first versions are sent at once, for the speed and the time there is to be learned
        assert 0 < event["deadlines"] < event["versions"] and event["paced_s"] > 0


def test_a_frozen_rank_is_replaced(tmp_path: Path, uninterrupted: Job) -> None:
    (tmp_path / "ff.json").write_text('{"enabled": true, "hang_timeout_s": 3.0}')

    def freeze(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(6))
        os.kill(pid_of(out, 2), signal.SIGSTOP)

    job = fftrain(
        tmp_path,
        toy(tmp_path, 24, "--pause", "0.1"),
        *NODES,
        "--ff-config",
        str(tmp_path / "ff.json"),
        meanwhile=freeze,
    )
    assert_same(job, uninterrupted)
    assert [event["rank"] for event in job.of("hang")] == [2]


def test_a_frozen_node_is_killed_and_replaced(tmp_path: Path, uninterrupted: Job) -> None:
    """Its agent stands still: no heartbeat. Nothing of it may go on beside its replacement, not even after it thaws."""
    (tmp_path / "ff.json").write_text('{"enabled": true, "heartbeat_timeout_s": 2.0}')
    frozen: list[int] = []

    def freeze(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(6))
        frozen.append(agent_pid(out, 1))
        os.kill(frozen[0], signal.SIGSTOP)

    job = fftrain(
        tmp_path,
        toy(tmp_path, 24, "--pause", "0.1"),
        *NODES,
        "--ff-config",
        str(tmp_path / "ff.json"),
        meanwhile=freeze,
    )
    assert_same(job, uninterrupted)
    assert [event["node"] for event in job.of("node_lost")] == [1]
    assert not psutil.pid_exists(frozen[0])
