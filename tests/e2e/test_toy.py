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
from typing import Any

import psutil
import pytest

from tests.copy.rig import UCX
from tests.e2e import jobs
from tests.e2e.jobs import ENV, TOY, Job, agent_pid, committed, fftrain, pid_of, results_of, toy, wait_for

NODES = ("--emulate-nodes", "2")


@pytest.fixture
def uninterrupted() -> dict[int, Any]:
    """The results of the same training under plain torchrun, by rank."""
    return results_of(jobs.uninterrupted(str(TOY), ("--iterations", "24"), lambda folder: ("--out", str(folder))))


def assert_same(job: Job, wanted: dict[int, Any]) -> None:
    assert job.code == 0, job.stderr[-4000:]
    ours = job.results()
    assert sorted(ours) == sorted(wanted) == [0, 1, 2, 3]
    for rank in wanted:
        assert ours[rank]["losses"] == wanted[rank]["losses"]
        assert ours[rank]["digest"] == wanted[rank]["digest"], f"rank {rank} differs"


def test_every_point_and_every_rank(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
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
    job = fftrain(tmp_path, toy(tmp_path, 24), *NODES, *options)
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


@pytest.mark.slow
def test_loss_of_a_whole_node(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, meanwhile=kill_agent_after(6))
    assert_same(job, uninterrupted)
    (event,) = job.of("failover")
    assert event["newcomers"] == [2, 3]
    assert job.of("coverage")[-1]["degraded"]


def settings(tmp_path: Path, **values: object) -> tuple[str, str]:
    """Options of `fftrain run` for these settings."""
    config = tmp_path / "ff.json"
    config.write_text(json.dumps(values))
    return ("--ff-config", str(config))


@UCX
@pytest.mark.slow
def test_ucx_between_emulated_nodes(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """A rank, then a whole node is lost."""
    words = (*settings(tmp_path, transport="ucx"), "--inject", "kill rank=2 iteration=6 at=backward")
    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, *words, meanwhile=kill_agent_after(12))
    assert_same(job, uninterrupted)
    assert "replicas travel by ucx" in job.stderr
    assert len(job.of("failover")) == 2


def test_shared_memory_a_damaged_slot_and_an_exception(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """Replicas travel through shared memory. A rank raises an exception, one dies that cannot load its own damaged
    slot, a whole node is lost: each is survived."""
    injections = (
        "raise rank=3 iteration=4 at=backward", "corrupt-slot rank=1 iteration=8 at=forward slot=own",
        "kill rank=1 iteration=8 at=forward",
    )  # fmt: skip
    words = [*settings(tmp_path, transport="shm"), *(word for text in injections for word in ("--inject", text))]
    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, *words, meanwhile=kill_agent_after(13))
    assert_same(job, uninterrupted)
    assert "replicas travel by shm" in job.stderr
    assert [event["dead"] for event in job.of("failover")][:2] == [[3], [1]]
    assert len(job.of("failover")) == 3
    assert job.of("bad_slot"), "the damaged slot was not noticed"


def test_several_streams_relaxed_and_sparse(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """Every third version is kept, over three connections, and nobody waits for it: two ranks die, then a node."""
    chosen = settings(tmp_path, tcp_streams=3, chunk_bytes=4096, interval=3, commit="relaxed")
    kills = ("kill rank=3 iteration=5 at=backward", "kill rank=0 iteration=11 at=after-step")
    words = [*chosen, *(word for kill in kills for word in ("--inject", kill))]
    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, *words, meanwhile=kill_agent_after(15))
    assert_same(job, uninterrupted)
    assert "replicas travel by tcp (3 streams)" in job.stderr
    assert all(event["v_star"] % 3 == 0 for event in job.of("failover"))
    assert [event["dead"] for event in job.of("failover")][:2] == [[3], [0]]
    assert [event["newcomers"] for event in job.of("failover")][2:] == [[2, 3]]
    assert job.of("coverage")[-1]["degraded"]


def test_ucx_that_is_not_there_ends_the_job_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENV, "FF_UCX_LIBRARY", str(tmp_path / "libucp.so.0"))
    job = fftrain(tmp_path, toy(tmp_path, 24), *NODES, *settings(tmp_path, transport="ucx"))
    assert job.code != 0
    assert f"transport = 'ucx': UCX cannot be loaded ({tmp_path}/libucp.so.0: cannot open shared object" in job.stderr
    assert "allowed without it: auto, shm, tcp" in job.stderr


@pytest.mark.slow
def test_random_moments(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
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


def test_two_at_once(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
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


def test_paced_and_killed_while_a_version_is_on_its_way(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """Versions are sent slowly on purpose: a death while one is on its way changes nothing, nor one at any moment."""
    rng = random.Random(20261123)

    def kill_later(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, lambda events: any(event["kind"] == "failover" for event in events))
        wait_for(out, committed(18))
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(pid_of(out, 0), signal.SIGKILL)

    words = (*settings(tmp_path, pacing=True), "--inject", "kill rank=2 iteration=15 at=copying")
    job = fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, *words, meanwhile=kill_later)
    assert_same(job, uninterrupted)
    assert [event["dead"] for event in job.of("failover")] == [[2], [0]]
    survivors = [event for event in job.of("rank_stats") if event["rank"] in (1, 3)]
    assert len(survivors) == 2
    for event in survivors:  # the first versions are sent at once, for the speed and the time there is to be learned
        assert 0 < event["deadlines"] < event["versions"] and event["paced_s"] > 0


def frozen(tmp_path: Path, pid: Callable[[Path], int], **values: object) -> Job:
    """A job of which the process `pid(out)` stands still from version 6 on. It is ended while the job goes on."""
    pids: list[int] = []

    def freeze(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(6))
        pids.append(pid(out))
        os.kill(pids[0], signal.SIGSTOP)
        ended = ("node_lost", "hang")
        wait_for(out, lambda events: any(event["kind"] in ended for event in events))
        for _ in range(100):  # at once, not when the job ends
            if not psutil.pid_exists(pids[0]) or process.poll() is not None:
                break
            time.sleep(0.02)
        assert process.poll() is None and not psutil.pid_exists(pids[0])

    words = settings(tmp_path, **values)
    return fftrain(tmp_path, toy(tmp_path, 24, "--pause", "0.1"), *NODES, *words, meanwhile=freeze)


@pytest.mark.slow  # test_settings_that_only_the_script_knows freezes one too
def test_a_frozen_rank_is_replaced(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    job = frozen(tmp_path, lambda out: pid_of(out, 2), hang_timeout_s=3.0)
    assert_same(job, uninterrupted)
    assert [event["rank"] for event in job.of("hang")] == [2]


def test_settings_that_only_the_script_knows(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """They hold in agents (shared memory, halts, spares), in the controller (hangs) and in replacements."""
    block = {"enabled": True, "transport": "shm", "halt_timeout_s": 1.5, "hang_timeout_s": 3.0, "spares": 1}

    def hurt(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(6))  # spares are there by now, if not ready
        os.kill(pid_of(out, 2), signal.SIGSTOP)  # cannot halt when it is told to
        os.kill(pid_of(out, 1), signal.SIGKILL)
        (resumed,) = wait_for(out, lambda events: [event for event in events if event["kind"] == "failover"])
        wait_for(out, committed(resumed["v_star"] + 3))  # it sleeps now: the others will wait for it
        os.kill(pid_of(out, 0), signal.SIGSTOP)

    script = toy(tmp_path, 24, "--pause", "0.3", "--block", json.dumps(block))
    job = fftrain(tmp_path, script, *NODES, meanwhile=hurt)
    assert_same(job, uninterrupted)
    assert "replicas travel by shm" in job.stderr
    assert "rank 2 did not halt within 1.5 s (halt_timeout_s); it is killed" in job.stderr
    assert [(event["rank"], "3 s" in event["text"]) for event in job.of("hang")] == [(0, True)]
    assert any(event["warm"] for event in job.of("worker_start"))
    (told,) = job.of("settings")
    origin = "the script's configuration"
    assert told["given"] == {name: [value, origin] for name, value in block.items() if name != "enabled"}
    assert f"settings: transport = shm ({origin}), hang_timeout_s = 3.0 ({origin}), " in job.stderr


def test_a_frozen_node_is_killed_and_replaced(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """Its agent stands still: no heartbeat. Nothing of it may go on beside its replacement, not even after it thaws."""
    job = frozen(tmp_path, lambda out: agent_pid(out, 1), heartbeat_timeout_s=3.0)
    assert_same(job, uninterrupted)
    assert [event["node"] for event in job.of("node_lost")] == [1]


@pytest.mark.parametrize("schedule", ["own", pytest.param("registered", marks=pytest.mark.slow)])
def test_a_scheduler_of_the_scripts_own(tmp_path: Path, schedule: str) -> None:
    """Its count is in an object of the script's own class: put back, whether anybody has registered it or not."""
    arguments = ("--iterations", "12", "--schedule", schedule)
    kill = ("--inject", "kill rank=1 iteration=6 at=backward")
    script = [str(TOY), *arguments, "--out", str(tmp_path / "results")]
    job = fftrain(tmp_path, script, *NODES, *kill, ranks=2)
    assert job.code == 0, job.stderr[-4000:]
    plain = jobs.uninterrupted(str(TOY), arguments, lambda folder: ("--out", str(folder)), ranks=2)
    assert job.results() == results_of(plain)
