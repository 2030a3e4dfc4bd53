"""Medians and spread of what was measured, and the machine it was measured on."""

from __future__ import annotations

import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import psutil


def spread(values: Sequence[float]) -> dict[str, float | int | list[float]]:
    """{"median", "low", "high", "n", "values"}: quartiles are pointless for the ten values there usually are."""
    if not values:
        raise ValueError("spread() of no values")
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "n": len(values),
        "values": [round(value, 4) for value in values],
    }


#: 97.5th percentile of Student's t by degrees of freedom, from 1; beyond the last one it changes little.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def confidence(differences: Sequence[float]) -> dict[str, float | int | list[float]]:
    """{"mean", "low", "high", "n", "values"}: mean of paired differences and its 95 % interval (Student's t).

    Raises ValueError for fewer than two: they say nothing about their spread.
    """
    if len(differences) < 2:
        raise ValueError(f"confidence() of {len(differences)} differences, at least two are needed")
    mean, count = statistics.fmean(differences), len(differences)
    half = _T[min(count - 1, len(_T)) - 1] * statistics.stdev(differences) / math.sqrt(count)
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "n": count,
        "values": [round(value, 6) for value in differences],
    }


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of every key that all rows have, in the order of the first."""
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    return {name: statistics.median(row[name] for row in rows) for name in names}


def steps_between(losses: Sequence[dict[str, Any]], skip: int) -> list[tuple[int, float]]:
    """(step, seconds since the step before) from lines {"step": s, "t": wall clock}; the first `skip` are left out."""
    pairs = [(b["step"], b["t"] - a["t"]) for a, b in itertools.pairwise(losses) if b["step"] == a["step"] + 1]
    return pairs[skip:]


def machine() -> dict[str, Any]:
    """Where and when: a number without that means little."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


def load() -> float:
    """Runnable processes, averaged over the last minute: more than there are cores means that times are too long."""
    return os.getloadavg()[0]


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
