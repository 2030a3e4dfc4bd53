#!/usr/bin/env python3
"""Measures whole DeepSpeed jobs on GPUs: recovery, and what protection costs an iteration.

    python scripts/bench_gpu_jobs.py --json gpu_jobs.json [--sizes 100m 300m 1b] [--rounds 4] [--kills 5]
                                     [--only shared alone nccl]

shared: two ranks on two emulated nodes, on one GPU, over gloo; each copies its half of the state to the other node.
alone: one rank over NCCL; its state goes to its own slot only, there is no neighbour.
nccl: one rank per GPU on two emulated nodes, over NCCL; left out where there is one GPU.

Cost: jobs in turns (bench.variants): plain under torchrun, protected with nothing copied, protected with every version
copied, and with the interval that the job chooses itself. What each takes beyond plain has a 95 % interval. Jobs differ
by more than a copy costs, so there is one more job, within which iterations with and without a copy are compared
(bench.within). Recovery: a spare is ready at each kill; the kill's moment is drawn. --kills 0 leaves recovery out,
--rounds 0 the jobs in turns, --within 0 the job with both kinds of iterations.

ZeRO-1, bf16, dropout, sequences of 512 bytes, buckets of 5e8 elements (DeepSpeed's default). Jobs leave their logs in
--out; that the bits come out right is for tests/e2e/test_gpu.py to say.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from bench import variants, within
from bench.jobs import EVERY, ROOT, Cluster, Job, Training, end_on_sigterm, fftrain_command
from bench.numbers import medians, spread
from bench.recovery import Assassin, Measurement, Say
from bench_gpu import machine

SECTIONS = ("shared", "alone", "nccl")
SIZES = ("100m", "300m", "1b")
_STEPS = 5000  # more than are needed: the job ends with the last kill
#: The sizes that people use.
_BUCKETS = {"reduce_bucket_size": 500_000_000, "allgather_bucket_size": 500_000_000}


def main() -> int:
    parser = argparse.ArgumentParser(description="measure whole jobs on GPUs")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu-jobs", metavar="DIR", help="of the jobs' logs")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="of models, as in train_gpt.py (default all)")
    parser.add_argument("--rounds", type=int, default=4, help="jobs of each variant; 0: no cost (default 4)")
    parser.add_argument("--steps", type=int, default=80, help="of each of these jobs (default 80)")
    parser.add_argument(
        "--within", type=int, default=200, metavar="STEPS", help="of the job in which some versions are copied"
    )
    parser.add_argument("--kills", type=int, default=5, help="in each recovery job; 0: no recovery (default 5)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    if options.rounds == 1:
        parser.error("--rounds 1: one round has no spread; give 0, or 2 and more")
    gpus = torch.cuda.device_count()
    if not gpus:
        raise SystemExit("no CUDA device: there is nothing to measure")
    end_on_sigterm()
    found: dict[str, Any] = {"machine": machine()}
    for size in options.sizes:
        for section in options.only:
            if section == "nccl" and gpus < 2:
                print("nccl: left out, torch sees one GPU")
                continue
            found.setdefault(size, {})[section] = measure(section, size, options, gpus)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(section: str, size: str, options: argparse.Namespace, gpus: int) -> dict[str, Any]:
    """A section's numbers; seconds unless the key says otherwise."""
    ranks = {"shared": 2, "alone": 1, "nccl": gpus - gpus % 2}[section]
    nodes = 1 if section == "alone" else 2
    backend = "gloo" if section == "shared" else "nccl"
    batch = 32 if section == "shared" or size == "1b" else 128
    out = options.out.resolve() / size / section
    data = ("--data-cache", str(options.out.resolve() / "data"))
    extra = ("--backend", backend, "--sequence", "512", "--micro-batch", str(batch), *data)
    config = Training(_STEPS).configured(out, zero_optimization=_BUCKETS).config

    def say(text: str) -> None:
        print(f"{size}, {section}: {text}", flush=True)

    found: dict[str, Any] = {}
    if options.rounds:
        training = Training(options.steps, size, config, extra)
        found["cost"] = variants.compare(out / "cost", training, Cluster(ranks, nodes, 0), options.rounds, say)
        for name, numbers in found["cost"].items():
            say(f"{name}: {numbers['iteration_s']['median']:.4f} s an iteration{beyond(numbers)}")
    if options.within:
        training = Training(options.within, size, config, extra)
        found["within"] = within.measure(out / "within", training, Cluster(ranks, nodes, 0))
        share = found["within"]["share"]
        say(
            f"a copied version, within a job: {share['mean']:+.2%} of an iteration "
            f"(95 %: {share['low']:+.2%} to {share['high']:+.2%})"
        )
    if options.kills:
        training = Training(_STEPS, size, config, extra)
        killed = kill_ranks(out / "kills", training, Cluster(ranks, nodes, 1), options.kills, say)
        found |= {
            "kill_to_step_s": spread([kill.seconds for kill in killed.kills]),
            "beyond_iteration_s": spread([kill.seconds - killed.median_iteration_s for kill in killed.kills]),
            "iteration_s": spread(killed.iteration_s[-50:]),
            "phases": medians([kill.phases for kill in killed.kills]),
        }
        say(f"kill_to_step_s {found['kill_to_step_s']['median']}, phases {found['phases']}")
    return found


def beyond(numbers: dict[str, Any]) -> str:
    """What a variant takes beyond plain, and what its ranks have counted, as words."""
    if "beyond_plain" not in numbers:
        return ""
    share, counted = numbers["beyond_plain"], numbers["rank_stats"].values()
    most = max((stats["lost_share"] for stats in counted), default=0.0)
    return (
        f", {share['mean']:+.2%} beyond plain (95 %: {share['low']:+.2%} to {share['high']:+.2%}); "
        f"counted as lost: {most:.2%}; intervals {numbers['intervals']}"
    )


def kill_ranks(directory: Path, training: Training, cluster: Cluster, kills: int, say: Say) -> Measurement:
    """Kill `kills` ranks of one job, then end it."""
    with Job(directory, fftrain_command(directory, training, cluster, EVERY)) as job:
        assassin = Assassin(job, cluster, list(range(cluster.ranks)), random.Random(1), say)
        for _ in range(kills):
            assassin.kill()
        assassin.settle()
        return assassin.measured


if __name__ == "__main__":
    raise SystemExit(main())
