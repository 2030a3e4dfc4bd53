#!/usr/bin/env python3
"""Measures what FFTrainer's Python takes of an iteration, in the training thread, part by part. Needs no GPU.

    python scripts/bench_hooks.py                          a table
    python scripts/bench_hooks.py --json                   the same as JSON on standard output
    python scripts/bench_hooks.py --framework megatron     of a Megatron job
    python scripts/bench_hooks.py --quick                  short, to see that it works

A model with as many parameters as GPT of 300 M (293), and next to nothing in them; one rank, nothing is copied. Parts
are of protected jobs; "beyond plain" is what their iterations take more than those of plain jobs, which take turns with
them. Waiting, the copy engine and the framework's own functions are in no part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import hooks
from bench.jobs import FRAMEWORKS, ROOT, end_on_sigterm
from bench.numbers import load, machine


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="results as JSON on standard output")
    parser.add_argument("--quick", action="store_true", help="short: shows that it works, measures nothing")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="deepspeed")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="jobs of each kind, at least two (default 3)")
    parser.add_argument("--steps", type=int, default=280, help="of each job (default 280)")
    out = ROOT / "out" / "bench-hooks"
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help="of the jobs' logs")
    arguments = parser.parse_args(words)
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: allowed: 2 or more")
    if arguments.steps < 40:
        parser.error(f"--steps {arguments.steps}: allowed: 40 or more, the first 25 are not measured")
    end_on_sigterm()
    out = arguments.out.resolve()
    if out.exists():
        shutil.rmtree(out)
    rounds, steps = (2, 40) if arguments.quick else (arguments.rounds, arguments.steps)
    results: dict[str, Any] = {"machine": machine(), "framework": arguments.framework, "quick": arguments.quick}
    results["load"] = {"before": load()}
    results |= hooks.measure(out, arguments.framework, steps, rounds, arguments.ranks, say)
    results["load"]["after"] = load()
    print(json.dumps(results, indent=2) if arguments.json else table(results))
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """A line per part: milliseconds of an iteration."""
    lines = [f"{'ms of an iteration':24} {'mean':>8} {'median':>8} {'p99':>8}"]
    rows = {**results["parts_ms"], "all": results["all_ms"], "proofs of sameness": results["sameness_ms"]}
    for name, value in rows.items():
        lines.append(f"{name:24} {value['mean']:8.3f} {value['median']:8.3f} {value['p99']:8.3f}")
    beyond = results["beyond_plain_ms"]
    lines.append(f"beyond plain: {beyond['mean']:.2f} ms (95 %: {beyond['low']:.2f} to {beyond['high']:.2f})")
    before, after = results["load"]["before"], results["load"]["after"]
    lines.append(f"{results['iterations']} iterations, load {before:.1f} to {after:.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
