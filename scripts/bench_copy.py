#!/usr/bin/env python3
"""Measures the copy engine against the floors of the same machine in the same minute: memcpy, raw TCP, gloo.

    python scripts/bench_copy.py             a table
    python scripts/bench_copy.py --json      the same as JSON on standard output
    python scripts/bench_copy.py --quick     small and short, to see that it works
    python scripts/bench_copy.py --only streams shm    what many cores carry; less than a minute

200 MB of state per rank. Ours and the floor take turns, so that what else the machine does meets both; a ratio is the
median over rounds of (ours, floor) of the same round. Its load is part of the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.copy_local import LocalCopy
from bench.copy_pair import Pair
from bench.node_keys import measure_node
from bench.numbers import load, machine, spread

from ff_core.copy.transports import missing_for_ucx

MB = 10**6
STREAMS = (1, 2, 4, 8)
COLUMNS = ("median", "low", "high", "mean", "p99")
GROUPS = ("copy", "pair", "streams", "shm")
PAIR_ACTIONS: tuple[str, ...] = ("stream", "send", "gloo", "durable", "shared")
if not missing_for_ucx():
    PAIR_ACTIONS += ("ucx",)


def rounds(count: int, actions: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of every action, in turns; the order changes from round to round. One unmeasured round first."""
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count + 1):
        for name in names if number % 2 == 0 else reversed(names):
            took = actions[name]()
            if number > 0:
                seconds[name].append(took)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Spread of above / below, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def measure(size: int, count: int, groups: Sequence[str]) -> dict[str, Any]:
    """The `cpu.` keys of these groups, and `spread` with what they are medians of. Rates in bytes per second, ratios of
    speeds."""
    found: dict[str, dict[str, Any]] = {}
    if "copy" in groups:
        found |= measure_copy(size, count)
    if "pair" in groups:
        found |= measure_pair(size, count)
    if {"streams", "shm"} & set(groups):
        turns = max(1, count // 3)
        found |= measure_node(1, size, turns, groups) | measure_node(8, size // 2, turns, groups)
    return {**{key: value["median"] for key, value in found.items()}, "spread": found}


def measure_copy(size: int, count: int) -> dict[str, dict[str, Any]]:
    """In one process."""
    found: dict[str, dict[str, Any]] = {}
    local = LocalCopy(size)
    try:
        one = rounds(2 * count, {"memcpy": local.memcpy, "copy": local.copy})
        blocked = [local.blocked() * 1e3 for _ in range(count)]
    finally:
        local.close()
    found["cpu.copy_over_memcpy"] = ratio(one["memcpy"], one["copy"])
    found["cpu.memcpy_bytes_per_s"] = spread([size / s for s in one["memcpy"]])
    found["cpu.blocked_ms"] = spread(blocked)
    return found


def measure_pair(size: int, count: int) -> dict[str, dict[str, Any]]:
    """Between two ranks."""
    found: dict[str, dict[str, Any]] = {}
    pair = Pair(size)
    try:
        for _ in range(3):  # both slots of both replicas, and their page tables
            pair.run("durable")
        cpu: dict[str, list[float]] = {name: [] for name in PAIR_ACTIONS}

        def act(name: str) -> float:
            seconds, worked = pair.run(name)
            cpu[name].append(worked)
            return seconds

        two = rounds(count, {name: partial(act, name) for name in PAIR_ACTIONS})
        several = [f"{name}:{streams}" for streams in STREAMS for name in ("stream", "send")]
        three = rounds(min(count, 7), {name: partial(lambda name: pair.run(name)[0], name) for name in several})
    finally:
        pair.close()
    found["cpu.send_over_tcp"] = ratio(two["stream"], two["send"])
    found["cpu.tcp_bytes_per_s"] = spread([size / s for s in two["stream"]])
    found["cpu.durable_200MB_both_ways_s"] = spread([s * 200 * MB / size for s in two["durable"]])
    found["cpu.gloo_200MB_both_ways_s"] = spread([s * 200 * MB / size for s in two["gloo"]])
    found["cpu.durable_over_gloo"] = ratio(two["durable"], two["gloo"])
    found["cpu.shared_200MB_both_ways_s"] = spread([s * 200 * MB / size for s in two["shared"]])
    found["cpu.shared_over_gloo"] = ratio(two["shared"], two["gloo"])
    if "ucx" in two:  # over what UCX chooses, or $UCX_TLS
        found["cpu.ucx_200MB_both_ways_s"] = spread([s * 200 * MB / size for s in two["ucx"]])
        found["cpu.ucx_over_gloo"] = ratio(two["ucx"], two["gloo"])
        found["cpu.ucx_cpu_over_gloo_cpu"] = ratio(cpu["ucx"][1:], cpu["gloo"][1:])
    for streams in STREAMS:
        sent, raw = three[f"send:{streams}"], three[f"stream:{streams}"]
        found[f"cpu.tcp_streams_bytes_per_s.{streams}"] = spread([size / s for s in raw])
        found[f"cpu.send_over_tcp_streams.{streams}"] = ratio(raw, sent)
        found[f"cpu.send_streams_over_one_tcp.{streams}"] = ratio(three["stream:1"], sent)
    # On a busy machine CPU time says more than the clock does.
    found["cpu.send_cpu_over_tcp_cpu"] = ratio(cpu["send"][1:], cpu["stream"][1:])
    found["cpu.durable_cpu_over_gloo_cpu"] = ratio(cpu["durable"][1:], cpu["gloo"][1:])
    found["cpu.shared_cpu_over_gloo_cpu"] = ratio(cpu["shared"][1:], cpu["gloo"][1:])
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="results as JSON on standard output")
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works, measures nothing")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="these groups of keys (default all)")
    parser.add_argument("--rounds", type=int, default=0, help="rounds per comparison (default 15; quick: 2)")
    arguments = parser.parse_args(words)
    if arguments.rounds < 0:
        parser.error(f"--rounds {arguments.rounds}: allowed: 1 or more")
    size = 4 * MB if arguments.quick else 200 * MB
    before = load()
    results = {"machine": machine(), "bytes": size, "quick": arguments.quick}
    results |= measure(size, arguments.rounds or (2 if arguments.quick else 15), arguments.only)
    results["load"] = {"before": before, "after": load()}
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print(table(results))
    return 0


def table(results: dict[str, Any]) -> str:
    """One line per key: median, lowest, highest; mean and p99 where there are."""
    lines = [f"{'':38} " + " ".join(f"{name:>10}" for name in COLUMNS)]
    for key, value in results["spread"].items():
        lines.append(f"{key:38} " + " ".join(f"{value[name]:10.4g}" for name in COLUMNS if name in value))
    lines.append(f"load {results['load']['before']:.1f} to {results['load']['after']:.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
