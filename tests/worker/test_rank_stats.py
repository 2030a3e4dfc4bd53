from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from ff_core.worker.rank_stats import BlockedTime, rank_stats

ENGINE = SimpleNamespace(
    versions=3, bytes_copied=10, bytes_sent=8, cpu_ns=2_000_000_000, send_ns=500_000_000, yielded_ns=0, paced_ns=0,
    deadlines=0, deadlines_missed=0, zero_copy_bytes=5,
)  # fmt: skip


def test_places_of_an_iteration_add_up_also_when_one_raises() -> None:
    blocked = BlockedTime()
    with blocked:
        time.sleep(0.01)
    with pytest.raises(KeyError), blocked:
        time.sleep(0.01)
        raise KeyError
    blocked.iteration_ended()
    with blocked:
        time.sleep(0.01)
    blocked.iteration_dropped()
    blocked.iteration_ended()
    assert blocked.milliseconds[0] >= 20 and blocked.milliseconds[1] == 0.0


def test_stats_have_units_and_survive_nothing_measured() -> None:
    stats = rank_stats(BlockedTime(), ENGINE)
    assert (stats["iterations"], stats["blocked_ms_median"], stats["blocked_ms_max"]) == (0, 0.0, 0.0)
    assert stats["engine_cpu_s"] == 2.0 and stats["send_bytes_per_s"] == 16.0
    assert stats["zero_copy_bytes"] == 5
    assert rank_stats(BlockedTime(), SimpleNamespace(**{**vars(ENGINE), "send_ns": 0}))["send_bytes_per_s"] == 0.0
