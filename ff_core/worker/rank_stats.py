"""What protection costs a rank, in figures: what the training loses for a version that is copied, and what the copy
engine did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from ff_core.worker.cost import CopyCosts


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that `share` of them do not exceed. Raises ValueError if there is none."""
    if not values:
        raise ValueError("percentile() of no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _spread(name: str, seconds: Iterable[float]) -> dict[str, float]:
    """Mean, median and p99 in milliseconds; 0 where nothing was measured."""
    values = [1e3 * value for value in seconds] or [0.0]
    return {
        f"{name}_ms_mean": fmean(values),
        f"{name}_ms_median": median(values),
        f"{name}_ms_p99": percentile(values, 0.99),
    }


def rank_stats(costs: CopyCosts, engine: Any) -> dict[str, Any]:
    """Fields of the event `rank_stats`: times in milliseconds (_ms) or seconds (_s). engine: the writer's counters.

    lost_ms_*: what the training stood still for one copied version (thread_ms_*: its thread; device_ms_*: the device
    at the fence).  lost_share_copying: of the iteration, if every one copied.  lost_share: of all iterations.
    slowed_ms_*: how much longer iterations took while a version was under way, of `slowed_measured` versions. Single
    ones are uncertain by as much as iterations differ.
    """
    measured = list(costs.measured)
    slowed = [cost.slowed_s for cost in measured if cost.slowed_s is not None]
    iteration_s = median(cost.iteration_s for cost in measured) if measured else 0.0
    lost_s = fmean(cost.lost_s for cost in measured) if measured else 0.0
    each = fmean(cost.iterations for cost in measured) if measured else 0.0
    return {
        "iterations": costs.iterations,
        "copies_measured": len(measured),
        "iteration_ms": 1e3 * iteration_s,
        **_spread("lost", (cost.lost_s for cost in measured)),
        **_spread("thread", (cost.thread_s for cost in measured)),
        **_spread("device", (cost.device_s for cost in measured)),
        "slowed_measured": len(slowed),
        **_spread("slowed", slowed),
        "lost_share_copying": lost_s / iteration_s if iteration_s else 0.0,
        "lost_share": lost_s / (each * iteration_s) if iteration_s else 0.0,
        "versions": engine.versions,
        "bytes_copied": engine.bytes_copied,
        "bytes_sent": engine.bytes_sent,
        "zero_copy_bytes": engine.zero_copy_bytes,
        "streams": engine.streams,
        "engine_cpu_s": engine.cpu_ns / 1e9,
        "send_s": engine.send_ns / 1e9,
        "send_bytes_per_s": engine.bytes_sent * 1e9 / engine.send_ns if engine.send_ns else 0.0,
        "yielded_s": engine.yielded_ns / 1e9,
        "paced_s": engine.paced_ns / 1e9,
        "deadlines": engine.deadlines,
        "deadlines_missed": engine.deadlines_missed,
    }
