"""What a node's ranks carry in all, over streams and through shared memory, against raw streams of the same run.

The ways take turns, a few versions each over new connections; a ratio is one of two neighbours. Keys begin with
`cpu.rank1.` and `cpu.rank8.`: so many ranks send at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean, median
from typing import Any

from bench.copy_node import Measured, Node, Way
from bench.numbers import spread
from ff_core.worker.rank_stats import percentile

MB = 10**6
STREAMS = {1: (1, 2, 4, 8), 8: (1, 2)}
COPIERS = {1: (1, 2, 4), 8: (1,)}
VERSIONS = 4  # of one turn


def rates(seconds: Sequence[float], size: int) -> dict[str, Any]:
    """Bytes per second: of the median, mean and p99 of the times (99 of 100 versions are at least that fast)."""
    found = spread([size / s for s in seconds])
    return {**found, "mean": size / fmean(seconds), "p99": size / percentile(seconds, 0.99)}


def ways(ranks: int, groups: Collection[str], auto: int) -> list[Way]:
    """raw streams go with everything."""
    found = []
    for count in STREAMS[ranks]:
        found.append(Way("raw", count))
        if "streams" in groups:
            found.append(Way("tcp", count))
    if "streams" in groups:
        found.append(Way("auto", auto))
    if "shm" in groups:
        found += [Way("shm", count) for count in COPIERS[ranks]]
    return found


def measure_node(ranks: int, size: int, turns: int, groups: Collection[str]) -> dict[str, dict[str, Any]]:
    """Spread of every key. size: bytes of a rank's version."""
    node = Node(size, ranks)
    try:
        order = ways(ranks, groups, node.auto())
        measured: dict[Way, list[Measured]] = {way: [] for way in order}
        for turn in range(turns):
            for way in order if turn % 2 == 0 else reversed(order):
                measured[way].append(node.measure(way, VERSIONS))
    finally:
        node.close()
    return keys(ranks, ranks * size, measured)


def keys(ranks: int, size: int, measured: dict[Way, list[Measured]]) -> dict[str, dict[str, Any]]:
    """size: bytes of all ranks' versions together."""
    speed = {
        way: [size / median(one.seconds) for one in turns] for way, turns in measured.items()
    }  # by turn, for ratios
    raw = [way for way in measured if way.name == "raw"]
    best = max(raw, key=lambda way: median(speed[way]))
    found: dict[str, dict[str, Any]] = {}
    for way, turns in measured.items():
        end = "" if way.name == "auto" else f".{way.count}"
        name = f"cpu.rank{ranks}.{way.name}"
        found[f"{name}_bytes_per_s{end}"] = rates([s for one in turns for s in one.seconds], size)
        gigabytes = size * VERSIONS / 1e9
        found[f"{name}_cpu_s_per_gb{end}"] = spread([one.cpu_s / gigabytes for one in turns])
        if way.name == "auto":
            found[f"{name}_opened"] = spread([float(way.count)])
            found[f"{name}_streams"] = spread([float(one.streams) for one in turns])
        if way.name != "raw":
            floor = Way("raw", way.count) if way.name == "tcp" else best
            ratios = [ours / theirs for ours, theirs in zip(speed[way], speed[floor], strict=True)]
            found[f"{name}_over_{'raw' if way.name == 'tcp' else 'best_raw'}{end}"] = spread(ratios)
    return found
