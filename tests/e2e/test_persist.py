"""Whole jobs that end, or lose their power, and go on from their persist_dir with the same command: to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ff_core.contract import persisted
from tests.e2e import jobs, test_nodes
from tests.e2e.jobs import ENV, TOY, Job, committed, fftrain, pid_of, results_of, toy, wait_for
from tests.e2e.test_nodes import command as on_host
from tests.e2e.test_nodes import log, three, wait_until_said
from tests.hosts import Hosts

__all__ = ["three"]  # a fixture

RANKS = 2
NODES = ("--emulate-nodes", "2")
ITERATIONS = 30
Meanwhile = Callable[[Path, subprocess.Popen[str]], None]


@pytest.fixture
def uninterrupted() -> dict[int, Any]:
    """The results of the same training under plain torchrun, by rank."""
    words = ("--iterations", str(ITERATIONS))
    return results_of(jobs.uninterrupted(str(TOY), words, lambda folder: ("--out", str(folder)), RANKS))


def command(place: Path, **settings: Any) -> tuple[list[str], list[str]]:
    """Script and options: the same for the first start and the next one."""
    config = place / "ff.json"
    config.write_text(json.dumps({"persist_dir": str(place / "disk"), "replicas": 1, **settings}))
    return toy(place, ITERATIONS, "--pause", "0.1"), [*NODES, "--ff-config", str(config)]


def start(place: Path, number: int, meanwhile: Meanwhile | None = None, **settings: Any) -> Job:
    script, options = command(place, **settings)
    return fftrain(place / f"start{number}", script, *options, ranks=RANKS, meanwhile=meanwhile)


def assert_same(place: Path, job: Job, wanted: dict[int, Any]) -> None:
    assert job.code == 0, job.stderr[-4000:]
    ours = results_of(place / "results")
    assert sorted(ours) == sorted(wanted)
    for rank in wanted:
        assert ours[rank]["losses"] == wanted[rank]["losses"]
        assert ours[rank]["digest"] == wanted[rank]["digest"], f"rank {rank} differs"


def kept(version: int) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda events: [e for e in events if e["kind"] == "version_kept" and e["version"] >= version]


def power_off(version: int) -> Meanwhile:
    """Everything is killed at once when a version from `version` on is on disk, and training has gone on."""

    def kill(out: Path, process: subprocess.Popen[str]) -> None:
        newest = wait_for(out, kept(version))[-1]["version"]
        wait_for(out, committed(newest + 2))
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        for signum in (signal.SIGSTOP, signal.SIGKILL):  # stopped, none does anything when another has gone
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signum)

    return kill


def test_a_loss_of_power(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """Versions were written while training went on. The same command, twice interrupted, ends as if nothing had been;
    frozen and replicated state comes from the disk, too. While a job runs, the same command is refused."""

    def second_job_meanwhile(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, kept(4))
        other = start(tmp_path, 0, persist_interval_s=0.3)
        assert other.code != 0 and f"is process {process.pid} on" in other.stderr, other.stderr[-3000:]
        assert not other.of("training_start")
        power_off(4)(out, process)

    first = start(tmp_path, 1, second_job_meanwhile, persist_interval_s=0.3)
    assert first.code == -signal.SIGKILL
    second = start(tmp_path, 2, power_off(12), persist_interval_s=0.3)
    (event,) = second.of("resume")
    assert event["version"] >= 4 and f"goes on after iteration {event['version']}" in second.stderr
    assert [e["v_star"] for e in second.of("failover")] == [event["version"]]
    third = start(tmp_path, 3, persist_interval_s=0.3)
    assert third.of("resume")[0]["version"] >= 12
    assert_same(tmp_path, third, uninterrupted)
    frozen = {float(path.read_text()) for path in (tmp_path / "results").glob("frozen*")}
    assert frozen == {float(pid_of(tmp_path / "start1", 0))}, "the frozen state is the first start's"
    assert len(persisted.complete(tmp_path / "disk")) == 2, "older versions go"


def test_a_damaged_version_and_a_death_after_the_start(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """The older version is taken; and a rank that dies later is replaced as ever."""
    start(tmp_path, 1, power_off(8), persist_interval_s=0.3)
    new, old = persisted.complete(tmp_path / "disk")[:2]
    file = new / persisted.rank_file(1)
    content = bytearray(file.read_bytes())
    content[-100_000] ^= 1  # in the payload, which comes last
    file.write_bytes(content)
    script, options = command(tmp_path, persist_interval_s=0.0)
    kill = ["--inject", "kill rank=1 iteration=20 at=backward"]
    job = fftrain(tmp_path / "start2", script, *options, *kill, ranks=RANKS)
    assert f"{new} is damaged: rank 1" in job.stderr and "it is passed over" in job.stderr
    assert job.of("resume")[0]["version"] == int(old.name.split("-")[-1])
    assert len(job.of("failover")) == 2
    assert_same(tmp_path, job, uninterrupted)


@pytest.mark.slow
def test_a_signal(tmp_path: Path, uninterrupted: dict[int, Any]) -> None:
    """What was safe when a scheduler's signal came is written before the job ends. Then Ctrl-C, and a third start."""

    def stop(signum: int) -> Meanwhile:
        def send(out: Path, process: subprocess.Popen[str]) -> None:
            wait_for(out, lambda events: len([e for e in events if e["kind"] == "commit"]) >= 6)
            process.send_signal(signum)

        return send

    first = start(tmp_path, 1, stop(signal.SIGTERM), persist_interval_s=0.0)
    assert first.code == 1 and len(first.of("version_kept")) == 1, first.stderr[-3000:]
    assert first.of("version_kept")[0]["version"] == max(event["W"] for event in first.of("commit"))
    second = start(tmp_path, 2, stop(signal.SIGINT), persist_interval_s=0.0)
    assert second.code == 1 and second.of("resume")[0]["version"] == first.of("version_kept")[0]["version"]
    third = start(tmp_path, 3, persist_interval_s=0.0)
    assert third.of("resume")[0]["version"] == second.of("version_kept")[0]["version"]
    assert_same(tmp_path, third, uninterrupted)


def test_another_script_is_refused_before_it_starts(tmp_path: Path) -> None:
    start(tmp_path, 1, power_off(2), persist_interval_s=0.3)
    script, options = command(tmp_path)
    job = fftrain(tmp_path / "start2", [*script, "--schedule", "own"], *options, ranks=RANKS)
    assert job.code == 1 and not job.of("worker_start")
    assert "is of another job: script and its arguments is" in job.stderr
    job = fftrain(tmp_path / "start3", script, *options[2:], ranks=1)
    assert job.code == 1 and not job.of("worker_start") and "it has 2 ranks, this job 1" in job.stderr


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("a file")
    job = start(tmp_path, 1)
    assert job.code != 0 and "persist_dir" in job.stderr and "cannot be written to" in job.stderr
    assert not job.of("worker_start")


@pytest.mark.slow
def test_no_spare_and_no_standby_is_left(tmp_path: Path, three: Hosts) -> None:
    """One of two hosts loses power and nobody comes. Before the job ends with 69 it writes the newest version, the lost
    ranks' from replicas. The same command, now on two hosts of which one is another, goes on and ends with the same
    bits."""
    whole = results_of(jobs.uninterrupted(str(TOY), ("--iterations", str(test_nodes.ITERATIONS)),
                                          lambda folder: ("--out", str(folder))))  # fmt: skip
    settings: dict[str, Any] = {
        "persist_dir": str(tmp_path / "disk"), "persist_interval_s": 0.0, "place_timeout_s": 2.0, "pause": 0.3,
    }  # fmt: skip

    def run(*numbers: int) -> dict[int, subprocess.Popen[Any]]:
        started = {}
        for number in numbers:
            words = on_host(tmp_path, three, number, "--nnodes", "2", **settings)
            started[number] = three.start(number, words, log(tmp_path, number), ENV)
            if number == 0:
                wait_until_said(tmp_path, 0, "still to come")
        return started

    started = run(0, 1)
    wait_for(tmp_path, committed(6))
    assert persisted.complete(tmp_path / "disk") == []
    three.power_off(1)
    assert started[0].wait(120) == 69, log(tmp_path, 0).read_text()[-4000:]
    (folder,) = persisted.complete(tmp_path / "disk")
    version = int(folder.name.split("-")[-1])
    said = log(tmp_path, 0).read_text()
    assert version >= 6 and f"is on disk, in {folder}: the same command goes on from there" in said
    log(tmp_path, 0).unlink()
    again = run(0, 2)
    assert again[0].wait(200) == 0, log(tmp_path, 0).read_text()[-4000:]
    assert again[2].wait(30) == 0
    assert f"the job goes on after iteration {version}" in log(tmp_path, 0).read_text()
    test_nodes.assert_same(tmp_path, whole)
