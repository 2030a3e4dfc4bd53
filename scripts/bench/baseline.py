"""What there is without us: torchrun starts all ranks again, and they load the last checkpoint from disk."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.follow import JsonLines
from bench.jobs import Job, JobFailed, Training, torchrun_command
from bench.recovery import Say

#: Otherwise the restarted ranks meet a store that remembers the ones before, and hang until a timeout.
_ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
_POLL_S = 0.02
_STUCK_S = 900.0


@dataclass(frozen=True, slots=True)
class Restart:
    """first_s: from SIGKILL to the first iteration completed after the restart, whichever that is.
    regained_s: to the end of the iteration that the kill interrupted.  redone: iterations made again for that.
    """

    first_s: float
    regained_s: float
    redone: int


def measure(
    directory: Path, training: Training, ranks: int, kills: int, every: int, seed: int, say: Say
) -> list[Restart]:
    """Kill a random rank `kills` times under torchrun; checkpoints `every` that many steps. Raises JobFailed."""
    checkpoints = ("--checkpoint", str(directory / "checkpoints"), "--checkpoint-every", str(every))
    training = Training(training.steps, training.size, training.config, (*training.extra, *checkpoints))
    command = torchrun_command(directory, training, ranks, ("--max-restarts", str(kills)))
    rng, restarts = random.Random(seed), []
    with Job(directory, command, _ENVIRONMENT) as job:
        log = _Steps(job)
        target = every + 2  # there is a checkpoint by then
        for _ in range(kills):
            log.wait(lambda line, least=target: line["step"] >= least, f"step {target}")
            time.sleep(rng.uniform(0.0, 1.0))
            restart = _kill(job, log, rng.randrange(ranks))
            restarts.append(restart)
            say(f"torchrun: {restart.first_s:.2f} s to an iteration, {restart.regained_s:.2f} s to the interrupted one")
            target = log.newest + every + 2
    return restarts


def _kill(job: Job, log: _Steps, rank: int) -> Restart:
    victims = _workers(job)
    sent = time.time()
    os.kill(victims[rank].pid, signal.SIGKILL)
    started = _restarted(job, victims[0].pid)
    interrupted = log.newest_before(started) + 1
    first = log.wait(lambda line: line["t"] > started, "the first step after a restart")
    regained = log.wait(lambda line: line["t"] > started and line["step"] >= interrupted, f"step {interrupted} again")
    return Restart(first["t"] - sent, regained["t"] - sent, interrupted - first["step"])


def _workers(job: Job) -> dict[int, psutil.Process]:
    """rank -> its process."""
    workers: dict[int, psutil.Process] = {}
    for process in psutil.Process(job.process.pid).children(recursive=True):
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if "RANK" in environment:
            workers.setdefault(int(environment["RANK"]), process)  # the worker is before its own children
    return workers


def _restarted(job: Job, old: int) -> float:
    """Wait for rank 0's new process; the wall clock then. Its predecessors are gone, and it is seconds from its first
    step. (What the kernel says of its start is relative to a boot time that is wrong by as much as the clock was set
    since.)"""
    deadline = time.monotonic() + _STUCK_S
    while True:
        process = _workers(job).get(0)
        if process is not None and process.pid != old:
            return time.time()
        job.check(deadline, "a restart")
        time.sleep(_POLL_S)


class _Steps:
    """The loss log as it grows. Its lines tell when rank 0 had completed a step."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._file = JsonLines(job.directory / "losses.jsonl")
        self._lines: list[dict[str, Any]] = []

    @property
    def newest(self) -> int:
        return int(self._lines[-1]["step"])

    def newest_before(self, at: float) -> int:
        self._lines += self._file.read()
        return max(int(line["step"]) for line in self._lines if line["t"] <= at)

    def wait(self, wanted: Any, what: str) -> dict[str, Any]:
        """The first line that is wanted. Raises JobFailed when the job ends without it."""
        deadline = time.monotonic() + _STUCK_S
        while True:
            running = self._job.running
            self._lines += self._file.read()
            for line in self._lines:
                if wanted(line):
                    return line
            self._job.check(deadline, what)
            if not running:
                raise JobFailed(f"the job ended before {what}: it needs more steps")
            time.sleep(_POLL_S)
