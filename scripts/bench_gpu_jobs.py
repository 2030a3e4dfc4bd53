#!/usr/bin/env python3
"""Measures whole DeepSpeed jobs on GPUs: recovery, and what replication costs an iteration.

    python scripts/bench_gpu_jobs.py --json gpu_jobs.json [--size 100m] [--kills 5] [--only shared alone nccl]

shared: two ranks on two emulated nodes, on one GPU, over gloo; each copies its half of the state to the other node.
alone: one rank over NCCL; its state goes to its own slot only, there is no neighbour.
nccl: one rank per GPU on two emulated nodes, over NCCL; left out where there is one GPU.

ZeRO-1, bf16, dropout, sequences of 512 bytes. A spare is ready at each kill; the kill's moment is drawn. Jobs leave
their logs in --out; that the bits come out right is for tests/e2e/test_gpu.py to say.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from bench import overhead
from bench.jobs import ROOT, Cluster, Job, Training, end_on_sigterm, fftrain_command
from bench.numbers import medians, spread
from bench.recovery import Assassin, Measurement, Say
from bench_gpu import machine

SECTIONS = ("shared", "alone", "nccl")
_STEPS, _STEPS_OF_COST = 5000, 40  # more than are needed: the job ends with the last kill
_MICRO_BATCH = {"shared": 32, "alone": 128, "nccl": 128}


def main() -> int:
    parser = argparse.ArgumentParser(description="measure whole jobs on GPUs")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu-jobs", metavar="DIR", help="of the jobs' logs")
    parser.add_argument("--size", default="100m", help="of the model, as in train_gpt.py (default 100m)")
    parser.add_argument("--kills", type=int, default=5, help="in each recovery job (default 5)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if not gpus:
        raise SystemExit("no CUDA device: there is nothing to measure")
    end_on_sigterm()
    found: dict[str, Any] = {"machine": machine(), "size": options.size}
    for section in options.only:
        if section == "nccl" and gpus < 2:
            print("nccl: left out, torch sees one GPU")
            continue
        found[section] = measure(section, options.out.resolve() / section, options.size, options.kills, gpus)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(section: str, out: Path, size: str, kills: int, gpus: int) -> dict[str, Any]:
    """A section's numbers; seconds unless the key says otherwise."""
    ranks = {"shared": 2, "alone": 1, "nccl": gpus - gpus % 2}[section]
    nodes = 1 if section == "alone" else 2
    backend = "gloo" if section == "shared" else "nccl"
    batch = str(_MICRO_BATCH[section])
    extra = ("--backend", backend, "--sequence", "512", "--micro-batch", batch, "--data-cache", str(out / "data"))

    def say(text: str) -> None:
        print(f"{section}: {text}", flush=True)

    killed = kill_ranks(out / "kills", Training(_STEPS, size, extra=extra), Cluster(ranks, nodes, 1), kills, say)
    cost = overhead.alternating(out / "cost", Training(_STEPS_OF_COST, size, extra=extra), Cluster(ranks, nodes, 0))
    found = {
        "kill_to_step_s": spread([kill.seconds for kill in killed.kills]),
        "beyond_iteration_s": spread([kill.seconds - killed.median_iteration_s for kill in killed.kills]),
        "iteration_s": spread(killed.iteration_s[-50:]),
        "phases": medians([kill.phases for kill in killed.kills]),
        "iteration_with_s": spread(cost.with_s),
        "iteration_without_s": spread(cost.without_s),
        "copy_cost_s": spread(cost.pairs_s),
        "blocked_ms": max(cost.blocked_ms.values()),
        "bytes_per_version": cost.bytes_per_version,
    }
    for name, value in found.items():
        say(f"{name} {value if not isinstance(value, dict) or 'median' not in value else value['median']}")
    return found


def kill_ranks(directory: Path, training: Training, cluster: Cluster, kills: int, say: Say) -> Measurement:
    """Kill `kills` ranks of one job, then end it."""
    with Job(directory, fftrain_command(directory, training, cluster)) as job:
        assassin = Assassin(job, cluster, list(range(cluster.ranks)), random.Random(1), say)
        for _ in range(kills):
            assassin.kill()
        assassin.settle()
        return assassin.measured


if __name__ == "__main__":
    raise SystemExit(main())
