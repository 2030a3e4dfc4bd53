from __future__ import annotations

from types import SimpleNamespace

import pytest

from ff_core.worker.cost import CopyCosts, Cost
from ff_core.worker.pacing import HostClock
from ff_core.worker.rank_stats import percentile, rank_stats

ENGINE = SimpleNamespace(
    versions=3, bytes_copied=10, bytes_sent=8, cpu_ns=2_000_000_000, send_ns=500_000_000, yielded_ns=0, paced_ns=0,
    deadlines=0, deadlines_missed=0, zero_copy_bytes=5, streams=4,
)  # fmt: skip


def test_percentile_is_one_of_the_values() -> None:
    values = [float(number) for number in range(1, 201)]
    assert (percentile(values, 0.99), percentile(values[::-1], 0.5), percentile([7.0], 0.99)) == (198.0, 100.0, 7.0)
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.99)


def test_stats_have_units_and_survive_nothing_measured() -> None:
    costs = CopyCosts(HostClock(), on_device=False)
    stats = rank_stats(costs, ENGINE)
    assert (stats["copies_measured"], stats["lost_ms_mean"], stats["lost_share"]) == (0, 0.0, 0.0)
    assert stats["engine_cpu_s"] == 2.0 and stats["send_bytes_per_s"] == 16.0
    assert (stats["zero_copy_bytes"], stats["streams"]) == (5, 4)
    assert rank_stats(costs, SimpleNamespace(**{**vars(ENGINE), "send_ns": 0}))["send_bytes_per_s"] == 0.0


def test_the_share_is_of_the_iteration_that_copies_and_of_all() -> None:
    costs = CopyCosts(HostClock(), on_device=False)
    for late_s in (0.0, 0.0, 0.3):
        costs.measured.append(
            Cost(
                thread_s=0.5,
                device_s=0.1,
                fixed_s=0.1,
                late_s=late_s,
                clear=1,
                iterations=4,
                iteration_s=2.0,
                slowed_s=0.2,
            )
        )
    stats = rank_stats(costs, ENGINE)
    assert stats["lost_ms_mean"] == pytest.approx(200.0) and stats["lost_ms_median"] == pytest.approx(100.0)
    assert stats["lost_ms_p99"] == pytest.approx(400.0)
    assert (stats["thread_ms_mean"], stats["device_ms_p99"]) == pytest.approx((500.0, 100.0))
    assert stats["slowed_measured"] == 3 and stats["slowed_ms_mean"] == pytest.approx(200.0)
    assert stats["lost_share_copying"] == pytest.approx(0.1) and stats["lost_share"] == pytest.approx(0.025)
