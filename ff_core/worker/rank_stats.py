"""What protection costs a rank: how long its training thread waits, and what its copy engine did."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from types import TracebackType
from typing import Any

_KEPT = 100_000  # iterations


class BlockedTime:
    """Time that the training thread spends here, summed up by iteration: a context around every such place."""

    def __init__(self) -> None:
        self.milliseconds: deque[float] = deque(maxlen=_KEPT)
        """One entry per finished iteration, the newest last."""
        self._sum_s = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._sum_s += time.perf_counter() - self._since

    def iteration_ended(self) -> None:
        self.milliseconds.append(self._sum_s * 1e3)
        self._sum_s = 0.0

    def iteration_dropped(self) -> None:
        """It was interrupted and is done again."""
        self._sum_s = 0.0


def rank_stats(blocked: BlockedTime, engine: Any) -> dict[str, Any]:
    """Fields of the event `rank_stats`: times in milliseconds (_ms) or seconds (_s). engine: the writer's counters."""
    return {
        "iterations": len(blocked.milliseconds),
        "blocked_ms_median": median(blocked.milliseconds) if blocked.milliseconds else 0.0,
        "blocked_ms_max": max(blocked.milliseconds, default=0.0),
        "versions": engine.versions,
        "bytes_copied": engine.bytes_copied,
        "bytes_sent": engine.bytes_sent,
        "zero_copy_bytes": engine.zero_copy_bytes,
        "engine_cpu_s": engine.cpu_ns / 1e9,
        "send_s": engine.send_ns / 1e9,
        "send_bytes_per_s": engine.bytes_sent * 1e9 / engine.send_ns if engine.send_ns else 0.0,
        "yielded_s": engine.yielded_ns / 1e9,
        "paced_s": engine.paced_ns / 1e9,
        "deadlines": engine.deadlines,
        "deadlines_missed": engine.deadlines_missed,
    }
