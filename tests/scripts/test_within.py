"""scripts/bench/within.py: what a copied version costs, from the times of one job's iterations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from bench.within import INTERVAL, costs


def times(copy_s: float, wait_s: float, steps: int = 60) -> dict[int, float]:
    """Iterations of 0.5 s; the first after each copied version takes `copy_s` longer, the next copied one `wait_s`."""
    seconds = dict.fromkeys(range(2, steps + 1), 0.5)
    for version in range(INTERVAL, steps, INTERVAL):
        seconds[version + 1] += copy_s
        seconds[version + INTERVAL] = 0.5 + wait_s
    return seconds


def test_slower_iterations_and_waits_are_both_counted() -> None:
    found = costs(times(0.03, 0.02), range(0, 61, INTERVAL))
    assert found["iteration_s"] == pytest.approx(0.5)
    assert found["version_s"]["mean"] == pytest.approx(0.05)
    assert found["share"]["mean"] == pytest.approx(0.1)
    assert found["version_s"]["n"] == 8, "12 to 60; the last one has no whole cycle"


def test_a_copy_that_costs_nothing() -> None:
    assert costs(times(0.0, 0.0), range(0, 61, INTERVAL))["share"]["high"] == pytest.approx(0.0)


def test_a_cycle_that_lacks_an_iteration_does_not_count() -> None:
    seconds = times(0.03, 0.0)
    del seconds[20]
    assert costs(seconds, range(0, 61, INTERVAL))["version_s"]["n"] == 7


def test_too_few_versions_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least two"):
        costs(times(0.0, 0.0, 14), [0, 6, 12])
