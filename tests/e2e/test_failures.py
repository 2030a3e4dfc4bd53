"""What a user sees when something is wrong with the job rather than with a machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.jobs import agent_pid, committed, fftrain, pid_of, toy, wait_for

NODES = ("--emulate-nodes", "2")
RANKS = 2  # one on each node: processes are dear, and no message depends on their number


def last_lines(text: str, count: int = 12) -> str:
    return "\n".join(text.rstrip().splitlines()[-count:])


def test_a_script_that_raises_at_start_ends_with_its_traceback(tmp_path: Path) -> None:
    job = fftrain(tmp_path, toy(tmp_path, 5, "--raise-at-start"), "--max-restarts", "1", ranks=1)
    assert job.code == 1
    assert "ValueError: broken on purpose" in last_lines(job.stderr)
    assert len(job.of("restart")) == 1


def test_the_same_exception_twice_ends_the_job(tmp_path: Path) -> None:
    inject = [word for _ in range(2) for word in ("--inject", "raise rank=1 iteration=4 at=backward")]
    job = fftrain(tmp_path, toy(tmp_path, 8), *NODES, *inject, ranks=RANKS)
    assert job.code == 1
    assert len(job.of("failover")) <= 1
    assert "failed twice in iteration 4" in job.stderr and "injected: raise rank=1" in last_lines(job.stderr)


def test_exit_0_in_the_middle_is_an_error(tmp_path: Path) -> None:
    words = (*NODES, "--inject", "exit rank=1 iteration=4 at=forward code=0")
    job = fftrain(tmp_path, toy(tmp_path, 8), *words, ranks=RANKS)
    assert job.code == 1
    assert "rank 1 exited with code 0" in last_lines(job.stderr)


def test_not_enough_memory_is_said_in_bytes_at_start(tmp_path: Path) -> None:
    (tmp_path / "ff.json").write_text('{"enabled": true, "memory_limit_bytes": "1MiB", "chunk_bytes": 65536}')
    job = fftrain(tmp_path, toy(tmp_path, 5), *NODES, "--ff-config", str(tmp_path / "ff.json"), ranks=RANKS)
    assert job.code == 1
    assert "not enough memory" in job.stderr and "needed" in job.stderr and "free" in job.stderr
    assert not job.of("training_start")


def test_loss_of_everything_is_unrecoverable_and_says_so(tmp_path: Path) -> None:
    """replicas = 0 and a node goes: its ranks' state is nowhere."""
    (tmp_path / "ff.json").write_text('{"enabled": true, "replicas": 0}')

    def kill_agent(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(3))
        os.kill(agent_pid(out, 1), signal.SIGKILL)

    job = fftrain(
        tmp_path,
        toy(tmp_path, 500, "--pause", "0.05"),
        *NODES,
        "--ff-config",
        str(tmp_path / "ff.json"),
        ranks=RANKS,
        meanwhile=kill_agent,
    )
    assert job.code == 1
    assert (
        "unrecoverable" in job.stderr
        and "rank 1 can supply nothing" in job.stderr
        and "no checkpoint was persisted" in job.stderr
    )
    assert "NOT of a node" in job.stderr


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    """And the events' pids, until then, are what an operator would kill."""
    family: list[psutil.Process] = []
    seen: list[str] = []

    def interrupt(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(2))
        seen.append(Path(f"/proc/{pid_of(out, 1)}/environ").read_text())
        family.extend(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGINT)

    script = toy(tmp_path, 500, "--pause", "0.05")
    job = fftrain(tmp_path, script, *NODES, ranks=RANKS, meanwhile=interrupt, forked=False)
    assert job.code == 1  # as torchrun
    assert "FF_UID=s0-r1" in seen[0]
    assert len(family) >= 4
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow  # launch/test_run.py has it without a training
def test_the_launchers_death_leaves_nothing_behind(tmp_path: Path) -> None:
    family: list[psutil.Process] = []

    def kill(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(2))
        family.extend(psutil.Process(process.pid).children(recursive=True))
        process.kill()

    fftrain(tmp_path, toy(tmp_path, 500, "--pause", "0.05"), *NODES, ranks=RANKS, meanwhile=kill)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(p.is_running() for p in family):
        time.sleep(0.1)
    assert len(family) >= 4 and not [p for p in family if p.is_running()]
