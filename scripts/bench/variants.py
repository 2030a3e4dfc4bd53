"""What protection costs an iteration: the same training plain, with hooks alone, and with copies, as jobs in turns.

A round has one job of each variant; their order changes from round to round, so that a machine that grows busier hurts
all of them. Differences are those of a round's jobs, the confidence interval is that of the rounds' mean difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.follow import JsonLines, Watch
from bench.jobs import Cluster, Job, Training, fftrain_command, torchrun_command
from bench.numbers import confidence, spread, steps_between
from bench.overhead import run_to_end
from bench.recovery import Say

#: Variant -> fields of its "ff_failover" block; None: under torchrun. Of "hooks" versions 0 and the last are copied,
#: which are none of the iterations that count. "auto" has chosen its interval before the iterations that count, if the
#: job is long enough.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "hooks": {"interval": 1_000_000},
    "every": {"interval": 1},
    "auto": {"interval": "auto"},
}
_WARM_UP = 25  # versions: 3 are not measured, 8 are before the first choice, and some that show what it did


@dataclass
class Measured:
    """iteration_s: of each round's job of a variant, the mean without the slowest twentieth: with an interval above 1 a
    median would leave out the iterations that copy.  stats: of the newest job, rank -> its counters.  intervals: what
    its last choice was."""

    iteration_s: list[float] = field(default_factory=list)
    stats: dict[int, dict[str, Any]] = field(default_factory=dict)
    intervals: list[int] = field(default_factory=list)


def compare(
    directory: Path,
    training: Training,
    cluster: Cluster,
    rounds: int,
    say: Say,
    variants: Mapping[str, dict[str, Any] | None] = VARIANTS,
) -> dict[str, Any]:
    """rounds: at least two. Raises JobFailed.

    {variant: {"iteration_s": spread}}; of all but "plain" also "beyond_plain_s" (mean and 95 % interval of the
    paired difference), "beyond_plain" (the same, as a share of the plain iteration) and "rank_stats" of its last job.
    """
    found = {name: Measured() for name in variants}
    for number in range(rounds):
        for name in _rotated(list(variants), number):
            one = found[name]
            seconds, watch = _job(directory / f"{name}-{number}", training, cluster, variants[name])
            one.iteration_s.append(seconds)
            if watch is not None:
                one.stats = watch.stats
                one.intervals.append(watch.interval)
            say(f"round {number + 1} of {rounds}, {name}: {1e3 * seconds:.1f} ms an iteration")
    return {name: _summary(one, found["plain"]) for name, one in found.items()}


def _rotated(names: Sequence[str], by: int) -> list[str]:
    return [*names[by % len(names) :], *names[: by % len(names)]]


def _summary(one: Measured, plain: Measured) -> dict[str, Any]:
    summary: dict[str, Any] = {"iteration_s": spread(one.iteration_s)}
    if one is plain:
        return summary
    pairs = list(zip(one.iteration_s, plain.iteration_s, strict=True))
    return {
        **summary,
        "beyond_plain_s": confidence([with_s - plain_s for with_s, plain_s in pairs]),
        "beyond_plain": confidence([with_s / plain_s - 1 for with_s, plain_s in pairs]),
        "intervals": one.intervals,
        "rank_stats": {str(rank): stats for rank, stats in sorted(one.stats.items())},
    }


def _job(
    directory: Path, training: Training, cluster: Cluster, block: dict[str, Any] | None
) -> tuple[float, Watch | None]:
    """Seconds of an iteration, and what the job said (nothing under torchrun)."""
    training = training.configured(directory, ff_failover={"enabled": block is not None, **(block or {})})
    command = (
        torchrun_command(directory, training, cluster.ranks)
        if block is None
        else fftrain_command(directory, training, cluster)
    )
    with Job(directory, command) as job:
        run_to_end(job)
    losses = JsonLines(directory / "losses.jsonl").read()
    timed = [seconds for _, seconds in steps_between(losses, _WARM_UP)][:-1]  # the last version is waited for
    seconds = fmean(sorted(timed)[: len(timed) - len(timed) // 20])
    if block is None:
        return seconds, None
    watch = Watch(directory)
    watch.update()
    return seconds, watch
