"""What replication costs while nothing fails: time of an iteration, of its training thread, and CPU.

One job copies every second version only. Iterations with a copy and without alternate, so that neighbours are a pair
and a machine that grows busier in between hurts both. Two more jobs give what the switch cannot: plain torchrun, and
the counters of a job that copies every version.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.follow import JsonLines, Watch
from bench.jobs import Cluster, Job, Training, fftrain_command, torchrun_command
from bench.numbers import steps_between
from bench.recovery import Say

_WARM_UP = 4
_POLL_S = 0.2
_STUCK_S = 1800.0


@dataclass(frozen=True, slots=True)
class Alternating:
    """with_s, without_s: iterations during which a version was copied, or none, in turns in one job; seconds.
    pairs_s: differences of neighbours.  lost_ms: rank -> mean time that its training stands still for a copied version.
    bytes_per_version: of one rank.
    """

    with_s: list[float]
    without_s: list[float]
    pairs_s: list[float]
    lost_ms: dict[int, float]
    bytes_per_version: int


@dataclass(frozen=True, slots=True)
class Overhead:
    """with_s, without_s, pairs_s: as in Alternating.  plain_s: iterations under torchrun.  every_s: iterations when
    each is copied; of that job are also lost_ms and bytes_per_version.
    cpu_s_per_version: of one rank, in its copy engine and, for receiving, in an agent.
    """

    with_s: list[float]
    without_s: list[float]
    pairs_s: list[float]
    plain_s: list[float]
    every_s: list[float]
    lost_ms: dict[int, float]
    cpu_s_per_version: float
    bytes_per_version: int


def measure(directory: Path, training: Training, cluster: Cluster, say: Say) -> Overhead:
    """Three jobs of training.steps steps each. Raises JobFailed."""
    quiet = Cluster(cluster.ranks, cluster.nodes, spares=0)  # waiting processes need CPU when they get ready
    say("a version is copied in every second iteration")
    pairs = alternating(directory / "alternating", training, quiet)
    say("every version is copied")
    every, stats, agents_cpu_s = _protected(directory / "every", training, quiet, interval=1)
    say("plain torchrun")
    plain = _plain(directory / "plain", training, cluster.ranks)
    versions = sum(counters["versions"] for counters in stats.values())
    cpu_s = sum(counters["engine_cpu_s"] for counters in stats.values()) + agents_cpu_s
    return Overhead(
        with_s=pairs.with_s,
        without_s=pairs.without_s,
        pairs_s=pairs.pairs_s,
        plain_s=[seconds for _, seconds in steps_between(plain, _WARM_UP)],
        every_s=[seconds for _, seconds in steps_between(every, _WARM_UP)],
        lost_ms=_lost_ms(stats),
        cpu_s_per_version=cpu_s / versions,
        bytes_per_version=_bytes_per_version(stats),
    )


def alternating(directory: Path, training: Training, cluster: Cluster) -> Alternating:
    """A job that copies every second version. Raises JobFailed."""
    losses, stats, _ = _protected(directory, training, cluster, interval=2)
    # Version v is copied during iteration v + 1.
    timed = dict(steps_between(losses, _WARM_UP))
    copying = {step: seconds for step, seconds in timed.items() if step % 2 == 1}
    return Alternating(
        with_s=list(copying.values()),
        without_s=[seconds for step, seconds in timed.items() if step % 2 == 0],
        pairs_s=[seconds - timed[step + 1] for step, seconds in copying.items() if step + 1 in timed],
        lost_ms=_lost_ms(stats),
        bytes_per_version=_bytes_per_version(stats),
    )


def _lost_ms(stats: dict[int, dict[str, Any]]) -> dict[int, float]:
    return {rank: counters["lost_ms_mean"] for rank, counters in sorted(stats.items())}


def _bytes_per_version(stats: dict[int, dict[str, Any]]) -> int:
    return int(statistics.median(counters["bytes_copied"] / counters["versions"] for counters in stats.values()))


def _protected(
    directory: Path, training: Training, cluster: Cluster, interval: int
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]], float]:
    """Loss lines, counters of every rank, CPU seconds of the agents while there was training."""
    training = training.configured(directory, ff_failover={"enabled": True, "interval": interval})
    with Job(directory, fftrain_command(directory, training, cluster)) as job:
        watch, agents = Watch(directory), _AgentsCpu()
        deadline = time.monotonic() + _STUCK_S
        while True:
            running = job.running
            agents.poll(watch.update(), watch.training and watch.ended is None)
            job.check(deadline, "the end of training")
            if not running:
                return JsonLines(directory / "losses.jsonl").read(), watch.stats, agents.seconds
            time.sleep(_POLL_S)


class _AgentsCpu:
    """CPU seconds that agents have used since training began; receiving replicas is nearly all that they do then."""

    def __init__(self) -> None:
        self._agents: dict[int, psutil.Process] = {}
        self._begun: dict[int, float] = {}
        self._now: dict[int, float] = {}

    def poll(self, events: list[dict[str, Any]], training: bool) -> None:
        for event in events:
            if event["kind"] == "node_start":
                self._agents[event["pid"]] = psutil.Process(event["pid"])
        for pid, process in self._agents.items():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            if training:
                self._now[pid] = times.user + times.system
                self._begun.setdefault(pid, self._now[pid])

    @property
    def seconds(self) -> float:
        return sum(self._now.values()) - sum(self._begun.values())


def _plain(directory: Path, training: Training, ranks: int) -> list[dict[str, Any]]:
    with Job(directory, torchrun_command(directory, training, ranks)) as job:
        run_to_end(job)
    return JsonLines(directory / "losses.jsonl").read()


def run_to_end(job: Job) -> None:
    """Raises JobFailed if it ends badly."""
    deadline = time.monotonic() + _STUCK_S
    while job.running:
        job.check(deadline, "the end of training")
        time.sleep(_POLL_S)
    job.check(deadline, "the end of training")
