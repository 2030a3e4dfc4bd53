"""Time from a SIGKILL until every rank has completed the iteration that it interrupted, under `fftrain run`."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.follow import Watch
from bench.jobs import EVERY, Cluster, Job, JobFailed, Training, fftrain_command

_POLL_S = 0.005
_QUIET = 4  # iterations after a failover, or after a spare has become ready, before the next kill
_STUCK_S = 900.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill. seconds: from the signal, on this process's clock, until every rank had completed the interrupted
    iteration.  phases: in seconds, "detect" from the signal on.  warm: a spare was ready.
    """

    rank: int
    version: int
    seconds: float
    phases: dict[str, float]
    warm: bool


@dataclass
class Measurement:
    """Kills of one job. iteration_s: durations of iterations without failover, with nothing else going on."""

    kills: list[Kill] = field(default_factory=list)
    iteration_s: list[float] = field(default_factory=list)

    @property
    def median_iteration_s(self) -> float:
        return statistics.median(self.iteration_s)


class Assassin:
    """Kills ranks of a running job at random moments, one after another, each when the job has calmed down.

    victims: ranks to choose from.  rng: draws rank and moment.
    """

    def __init__(self, job: Job, cluster: Cluster, victims: list[int], rng: random.Random, say: Say) -> None:
        self.job, self.cluster, self.victims, self.rng, self.say = job, cluster, victims, rng, say
        self.watch = Watch(job.directory)
        self.measured = Measurement()
        self._calm_since = -1  # the version at which the job calmed down; -1: it has not
        self._last_commit: float | None = None
        self._deadline = time.monotonic() + _STUCK_S

    def kill(self) -> Kill:
        """Wait until the job is calm, kill a random rank at a random moment, wait for the failover's end.

        Raises JobFailed when the job ends before that.
        """
        self._until(self._calm, "the job is calm and a spare is ready")
        time.sleep(self.rng.uniform(0.0, 2.0 * self.measured.median_iteration_s))
        rank, before = self.rng.choice(self.victims), len(self.watch.failovers)
        self._poll()
        sent = time.time()
        os.kill(self.watch.pids[rank], signal.SIGKILL)
        self._until(lambda: len(self.watch.failovers) > before, f"rank {rank} is replaced")
        event = self.watch.failovers[-1]
        if event["dead"] != [rank]:
            raise JobFailed(f"rank {rank} was killed, but the failover was for {event['dead']}: {event['cause']}")
        seconds = event["died_at"] + event["total_s"] - sent
        # The controller takes a death for as old as its agent's waitpid(); the kernel needs time before that.
        phases = {**event["phases"], "detect": event["phases"]["detect"] + event["died_at"] - sent}
        kill = Kill(rank, event["v_star"] + 1, seconds, phases, event["spare"] == "warm")
        self.measured.kills.append(kill)
        self.say(f"rank {rank} killed in iteration {kill.version}: {seconds:.3f} s ({event['spare']})")
        return kill

    def settle(self) -> None:
        """Wait until the job is calm again."""
        self._until(self._calm, "the job is calm")

    def finish(self) -> Measurement:
        """Wait for the job's end. Raises JobFailed if it is a bad one."""
        self._until(lambda: not self.job.running, "the job has ended")
        self.job.check(self._deadline, "the end")
        return self.measured

    def _until(self, done: Callable[[], bool], what: str) -> None:
        self._deadline = time.monotonic() + _STUCK_S
        while True:
            running = self.job.running
            self._poll()
            if done():
                return
            self.job.check(self._deadline, what)
            if not running:
                raise JobFailed(f"the job ended before {what}: it needs more steps")
            time.sleep(_POLL_S)

    def _poll(self) -> None:
        watch, needed = self.watch, self.cluster.spares
        for event in watch.update():
            if event["kind"] == "halt":
                self._calm_since = -1
            elif event["kind"] == "commit" and self._calm_since >= 0:
                self._count(event["t"])
        spares = all(watch.spares.get(node, 0) >= needed for node in range(self.cluster.nodes))
        if not (watch.training and spares) or watch.recovering:
            self._calm_since = -1
        elif self._calm_since < 0:
            self._calm_since, self._last_commit = watch.w, None

    def _calm(self) -> bool:
        return 0 <= self._calm_since <= self.watch.w - _QUIET and bool(self.measured.iteration_s)

    def _count(self, at: float) -> None:
        """An iteration's duration is the time between two commits."""
        if self._last_commit is not None:
            self.measured.iteration_s.append(at - self._last_commit)
        self._last_commit = at


def measure(directory: Path, training: Training, cluster: Cluster, kills: int, seed: int, say: Say) -> Measurement:
    """Kill `kills` random ranks of one job at random moments, and let it end. Raises JobFailed."""
    with Job(directory, fftrain_command(directory, training, cluster, EVERY)) as job:
        assassin = Assassin(job, cluster, list(range(cluster.ranks)), random.Random(seed), say)
        for _ in range(kills):
            assassin.kill()
        return assassin.finish()
