"""What FFTrainer's Python takes in the training thread of a job that copies nothing, part by part.

Jobs of a model with as many parameters as one of 300 M, each of them tiny, so that computing does not matter. Plain
ones under torchrun and protected ones take turns (`bench.variants`); the protected ones time their own parts
(`timed_script`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from timed_script import WAITS

from bench import variants
from bench.jobs import ROOT, Cluster, Training
from bench.recovery import Say

_WARM_UP = 25  # iterations: the first 16 are looked at closely
#: Parts that prove that the ranks are alike, or that a redone iteration is the same.
SAMENESS = ("inputs", "fingerprint", "edits", "sameness", "hyperparameters", "modes")
_BLOCKS = {name: variants.VARIANTS[name] for name in ("plain", "hooks")}


@dataclass(frozen=True, slots=True)
class TimedTraining(Training):
    """A training whose script times itself; see `timed_script`."""

    def command(self, directory: Path) -> list[str]:
        script = ROOT / "scripts" / "timed_script.py"
        return [str(script), str(directory / "hooks.json"), self.framework, *Training.command(self, directory)]


def measure(directory: Path, framework: str, steps: int, rounds: int, ranks: int, say: Say) -> dict[str, Any]:
    """{"parts_ms": part -> {"mean", "median", "p99"}, "all_ms", "sameness_ms": the same of sums, "beyond_plain_ms":
    of whole iterations, with its 95 % interval, "iterations"}. rounds: at least two. Raises JobFailed."""
    # In fp32, because not every CPU can multiply in bf16 at a speed.
    extra = () if framework == "megatron" else ("--sequence", "16", "--micro-batch", "1")
    config = ROOT / "configs" / "deepspeed" / "zero1_fp32.json"
    training = TimedTraining(steps, "deep", config, extra, framework)
    found = variants.compare(directory, training, Cluster(ranks, 1, 0), rounds, say, _BLOCKS)
    timed = [
        iteration
        for number in range(rounds)
        for iteration in json.loads((directory / f"hooks-{number}" / "hooks.json").read_text())[_WARM_UP:-1]
    ]
    beyond = found["hooks"]["beyond_plain_s"]
    return {**summary(timed), "beyond_plain_ms": {key: 1e3 * beyond[key] for key in ("mean", "low", "high")}}


def summary(iterations: list[dict[str, float]]) -> dict[str, Any]:
    """iterations: part -> seconds, each."""
    parts = sorted({part for iteration in iterations for part in iteration} - set(WAITS))

    def of(names: tuple[str, ...]) -> dict[str, float]:
        sums = sorted(1e3 * sum(iteration.get(part, 0.0) for part in names) for iteration in iterations)
        return {"mean": fmean(sums), "median": median(sums), "p99": sums[math.ceil(0.99 * len(sums)) - 1]}

    return {
        "parts_ms": {part: of((part,)) for part in parts},
        "all_ms": of(tuple(parts)),
        "sameness_ms": of(SAMENESS),
        "iterations": len(iterations),
    }
