#!/usr/bin/env python3
"""Measures failures: how long a job stands still when a rank is killed, and what protection costs while none is.

    python scripts/bench_recovery.py                    a table
    python scripts/bench_recovery.py --json             the same as JSON on standard output
    python scripts/bench_recovery.py --failovers 20     also: what twenty failovers leave behind in the survivors
    python scripts/bench_recovery.py --framework megatron    recovery of a Megatron job (sections recovery and cold)
    python scripts/bench_recovery.py --quick            everything with a tiny model and few kills, to see that it works

Four ranks on two emulated nodes, ZeRO-1, bf16, GPT of 5 M parameters, micro-batch 2 x 128 (20 M for the cost of
replication). Numbers are as good as the machine is idle: its load is part of the results. All jobs leave their logs in
--out, the results are also in OUT/results.json. Exit code 1 if a job failed or computed something else than the same
job uninterrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import baseline, leaks, overhead, recovery
from bench.jobs import FRAMEWORKS, ROOT, Cluster, Job, Training, end_on_sigterm, torchrun_command
from bench.numbers import load, machine, medians, spread
from bench.results import differences
from bench.table import print_results
from rich.console import Console

from ff_core.errors import FailoverError

SECTIONS = ("recovery", "cold", "baseline", "overhead", "leak")
MEGATRON_SECTIONS = ("recovery", "cold")
CLUSTER = Cluster(ranks=4, nodes=2, spares=1)
COLD = Cluster(ranks=4, nodes=2, spares=0)
#: A spare is refilled in the time of about this many iterations, on two cores that train as well.
_STEPS_PER_KILL, _STEPS_PER_COLD_KILL = 60, 20


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    end_on_sigterm()
    console = Console(stderr=arguments.json, width=None if sys.stdout.isatty() else 140)
    results: dict[str, Any] = {"machine": machine(), "load": {}, "bit_exact": None, "differences": []}
    results |= {"framework": arguments.framework, "quick": arguments.quick, "seed": arguments.seed}
    try:
        if arguments.out.exists():
            shutil.rmtree(arguments.out)
        arguments.out.mkdir(parents=True)
        Bench(arguments, results, console).run()
    except (FailoverError, OSError) as error:
        results["error"] = str(error)
    except KeyboardInterrupt:
        results["error"] = "interrupted"
    if "error" in results:
        console.print(f"error: {results['error']}", style="red", highlight=False, markup=False, soft_wrap=True)
    text = json.dumps(results, indent=2)
    (arguments.out / "results.json").write_text(text + "\n")
    print_results(results, console)
    if arguments.json:
        print(text)
    return 1 if "error" in results or results["bit_exact"] is False else 0


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure recovery and the cost of protection.")
    parser.add_argument("--json", action="store_true", help="JSON on standard output; the table goes to stderr")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench", metavar="DIR", help="emptied first")
    parser.add_argument("--kills", type=int, default=10, help="with a spare ready (default: 10)")
    parser.add_argument(
        "--failovers", type=int, default=0, metavar="N", help="look for leaks over N failovers of a job"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the ranks of kills")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="deepspeed", help="what trains (default: deepspeed)")
    parser.add_argument("--quick", action="store_true", help="tiny model, few kills: does it work, not how fast is it")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    arguments = parser.parse_args(words)
    arguments.out = arguments.out.resolve()
    if arguments.quick:
        arguments.kills, arguments.failovers = min(arguments.kills, 2), 3
    sections = MEGATRON_SECTIONS if arguments.framework == "megatron" else SECTIONS
    if arguments.only is None:
        arguments.only = [name for name in sections if name != "leak" or arguments.failovers]
    for name in arguments.only:
        if name not in sections:
            parser.error(f"--only {name}: allowed with --framework {arguments.framework}: {', '.join(sections)}")
    if "leak" in arguments.only and arguments.failovers < 3:
        parser.error(f"--failovers {arguments.failovers}: allowed: 3 or more, to compare with the state after two")
    if arguments.kills < 1:
        parser.error(f"--kills {arguments.kills}: allowed: 1 or more")
    out: Path = arguments.out
    # It is emptied: nothing that was not written by a benchmark before may be in it.
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "results.json").exists())):
        parser.error(f"--out {out}: allowed: a directory that is new, empty, or that of an earlier benchmark")
    return arguments


class Bench:
    """One run of the benchmark; each section adds its keys to `results`."""

    def __init__(self, arguments: argparse.Namespace, results: dict[str, Any], console: Console) -> None:
        self.arguments, self.results, self.console = arguments, results, console
        self.out: Path = arguments.out
        self.quick: bool = arguments.quick
        self.size = "tiny" if self.quick else "5m"
        # The tiny model's iterations would otherwise be over before a spare has done its imports.
        self.framework: str = arguments.framework
        self.extra: tuple[str, ...] = ()
        if self.quick and self.framework == "megatron":
            self.extra = ("--micro-batch-size", "32", "--global-batch-size", "128")
        elif self.quick:
            self.extra = ("--micro-batch", "32")

    def run(self) -> None:
        for name in self.arguments.only:
            self.say(f"{name}:")
            before = load()
            getattr(self, name)()
            self.results["load"][name] = (round(before, 2), round(load(), 2))
            (self.out / "results.json").write_text(json.dumps(self.results, indent=2) + "\n")
        spare, restart = self.results.get("kill_to_step_s"), self.results.get("baseline_restart_s")
        self.results["ratio"] = restart["median"] / spare["median"] if spare and restart else None

    def say(self, text: str) -> None:
        self.console.print(f"bench: {text}", highlight=False, markup=False, soft_wrap=True)

    def recovery(self) -> None:
        kills: int = self.arguments.kills
        training = Training(_STEPS_PER_KILL * (kills + 1), self.size, extra=self.extra, framework=self.framework)
        measured = recovery.measure(self.out / "spare", training, CLUSTER, kills, self.arguments.seed, self.say)
        iteration = measured.median_iteration_s
        self.results["kill_to_step_s"] = spread([kill.seconds for kill in measured.kills])
        self.results["beyond_iteration_s"] = spread([kill.seconds - iteration for kill in measured.kills])
        self.results["iteration_s"] = spread(measured.iteration_s)
        self.results["phases"] = medians([kill.phases for kill in measured.kills])
        self.results["kills"] = [
            {"rank": kill.rank, "iteration": kill.version, "seconds": kill.seconds, "warm": kill.warm, **kill.phases}
            for kill in measured.kills
        ]
        self._compare(self.out / "spare", training)

    def cold(self) -> None:
        kills = 1 if self.quick else 5
        training = Training(_STEPS_PER_COLD_KILL * (kills + 1), self.size, extra=self.extra, framework=self.framework)
        measured = recovery.measure(self.out / "cold", training, COLD, kills, self.arguments.seed, self.say)
        self.results["kill_to_step_no_spare_s"] = spread([kill.seconds for kill in measured.kills])
        self.results["phases_no_spare"] = medians([kill.phases for kill in measured.kills])
        self._compare(self.out / "cold", training)

    def baseline(self) -> None:
        kills, every = (1, 10) if self.quick else (3, 10)
        # Enough steps, but not far more: a large data set would take time at every start.
        training = Training(5 * every * (kills + 1), self.size, extra=self.extra, framework=self.framework)
        restarts = baseline.measure(
            self.out / "baseline", training, CLUSTER.ranks, kills, every, self.arguments.seed, self.say
        )
        self.results["baseline_restart_s"] = spread([restart.first_s for restart in restarts])
        self.results["baseline_regain_s"] = spread([restart.regained_s for restart in restarts])
        self.results["baseline_redone_iterations"] = [restart.redone for restart in restarts]

    def overhead(self) -> None:
        training = Training(16 if self.quick else 60, "tiny" if self.quick else "20m")
        cost = overhead.measure(self.out / "overhead", training, CLUSTER, self.say)
        self.results["lost_ms_20m"] = max(cost.lost_ms.values())
        self.results["lost_ms_by_rank"] = {str(rank): value for rank, value in cost.lost_ms.items()}
        self.results["iteration_with_s"] = spread(cost.with_s)
        self.results["iteration_without_s"] = spread(cost.without_s)
        self.results["copy_cost_s"] = spread(cost.pairs_s)
        self.results["iteration_plain_s"] = spread(cost.plain_s)
        self.results["iteration_every_s"] = spread(cost.every_s)
        self.results["cpu_s_per_version"] = cost.cpu_s_per_version
        self.results["bytes_per_version"] = cost.bytes_per_version

    def leak(self) -> None:
        failovers: int = self.arguments.failovers
        training = Training(_STEPS_PER_KILL * (failovers + 2), self.size, extra=self.extra, framework=self.framework)
        self.results["leak"] = leaks.measure(
            self.out / "leak", training, CLUSTER, failovers, self.arguments.seed, self.say
        )

    def _compare(self, directory: Path, training: Training) -> None:
        """Against the same training, uninterrupted."""
        reference = self.out / f"{directory.name}-uninterrupted"
        self.say("the same job, uninterrupted")
        with Job(reference, torchrun_command(reference, training, CLUSTER.ranks)) as job:
            overhead.run_to_end(job)
        lines = [f"{directory.name}: {line}" for line in differences(directory, reference, CLUSTER.ranks)]
        self.results["differences"] += lines
        self.results["bit_exact"] = not self.results["differences"]


if __name__ == "__main__":
    sys.exit(main())
