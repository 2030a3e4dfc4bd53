"""Ranks that stand still, without a word about it in the settings: found soon, shown where they were, replaced."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e import jobs
from tests.e2e.jobs import TOY, committed, fftrain, pid_of, results_of, wait_for

ITERATIONS = "24"


def test_a_stopped_rank_and_two_deadlocks(tmp_path: Path) -> None:
    """One waits for a lock of its own, one for a library that keeps the interpreter's. All bits are as they would have
    been; each was found within twice the slowest iteration, a second, and some heartbeats."""

    def stop(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(11))
        os.kill(pid_of(out, 0), signal.SIGSTOP)

    words = ("--pause", "0.1", "--fault", "lock:1:16,gil:2:20")
    script = [str(TOY), "--iterations", ITERATIONS, "--out", str(tmp_path / "results"), *words]
    job = fftrain(tmp_path, script, meanwhile=stop)
    assert job.code == 0, job.stderr[-4000:]
    places = jobs.uninterrupted(str(TOY), ("--iterations", ITERATIONS), lambda folder: ("--out", str(folder)))
    plain = results_of(places)
    ours = job.results()
    assert {rank: (one["losses"], one["digest"]) for rank, one in ours.items()} == {
        rank: (one["losses"], one["digest"]) for rank, one in plain.items()
    }
    hangs = job.of("hang")
    assert [event["rank"] for event in hangs] == [0, 1, 2], [event["text"] for event in hangs]
    assert [event["dead"] for event in job.of("failover")] == [[0], [1], [2]]
    for event, place in zip(hangs, ("", "_hurt", "_hurt"), strict=True):
        assert "hang_timeout_s = auto" in event["text"]
        told: dict[int, Any] = {rank: text for ranks, text in event["stacks"] for rank in ranks}
        assert sorted(told) == [0, 1, 2, 3]
        assert all("toy.py" in text for text in told.values()) and place in told[event["rank"]], told
