"""What a copied version costs, within one job: jobs differ by more than a copy costs (5 % on one machine).

Every sixth version is copied. Of the six iterations from one copied version to the next, the first two have the copy
under way, the last one waits at the gate if that is late, and the three between them have neither: they say how long an
iteration takes by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.follow import JsonLines
from bench.jobs import Cluster, Job, Training, fftrain_command
from bench.numbers import confidence, steps_between
from bench.overhead import run_to_end

INTERVAL = 6
_QUIET = range(3, INTERVAL)  # iterations after the copied version that have nothing to do with a copy
_WARM_UP = 12


def measure(directory: Path, training: Training, cluster: Cluster) -> dict[str, Any]:
    """Of one job: {"iteration_s", "version_s", "share"}; see `costs`. Raises JobFailed, ValueError for a short job."""
    training = training.configured(directory, ff_failover={"enabled": True, "interval": INTERVAL})
    with Job(directory, fftrain_command(directory, training, cluster)) as job:
        run_to_end(job)
    losses = JsonLines(directory / "losses.jsonl").read()
    events = JsonLines(directory / "events.jsonl").read()
    copied = [event["W"] for event in events if event["kind"] == "commit"]
    return costs(dict(steps_between(losses, 0)), copied)


def costs(seconds: Mapping[int, float], copied: Sequence[int]) -> dict[str, Any]:
    """seconds: step -> how long its iteration took.  copied: versions, by the steps that made them.

    "iteration_s": mean of iterations that have nothing to do with a copy.  "version_s": what six iterations took beyond
    six of those, mean with its 95 % interval.  "share": the same, of an iteration: what copying each version would
    cost.
    """
    beyond, quiet = [], []
    for version in sorted(set(copied)):
        cycle = [seconds.get(version + place) for place in range(1, INTERVAL + 1)]
        whole = [value for value in cycle if value is not None]
        if version < _WARM_UP or len(whole) < INTERVAL or version + INTERVAL not in copied:
            continue
        alone = [whole[place - 1] for place in _QUIET]
        quiet += alone
        beyond.append(sum(whole) - INTERVAL * fmean(alone))
    if len(beyond) < 2:
        raise ValueError(f"{len(beyond)} copied versions after {_WARM_UP} iterations: at least two are needed")
    iteration = fmean(quiet)
    return {
        "iteration_s": iteration,
        "version_s": confidence(beyond),
        "share": confidence([value / iteration for value in beyond]),
    }
