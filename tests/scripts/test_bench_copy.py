"""The copy benchmark measures and says everything that it promises; how fast things are is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    "cpu.copy_over_memcpy",
    "cpu.send_over_tcp",
    "cpu.durable_200MB_both_ways_s",
    "cpu.durable_over_gloo",
    "cpu.blocked_ms",
    "cpu.send_over_tcp_streams.1",
    "cpu.send_over_tcp_streams.8",
    "cpu.send_streams_over_one_tcp.4",
    "cpu.tcp_streams_bytes_per_s.2",
)
MANY_CORES = (
    "cpu.rank1.raw_bytes_per_s.8", "cpu.rank1.tcp_bytes_per_s.4", "cpu.rank1.tcp_over_raw.4",
    "cpu.rank1.tcp_cpu_s_per_gb.4", "cpu.rank1.auto_bytes_per_s", "cpu.rank1.auto_over_best_raw",
    "cpu.rank1.auto_streams", "cpu.rank1.shm_bytes_per_s.4", "cpu.rank1.shm_over_best_raw.2",
    "cpu.rank8.raw_bytes_per_s.1", "cpu.rank8.auto_over_best_raw", "cpu.rank8.auto_cpu_s_per_gb",
    "cpu.rank8.shm_bytes_per_s.1", "cpu.rank8.shm_cpu_s_per_gb.1",
)  # fmt: skip


@pytest.mark.timeout(300)
def test_quick_run_has_every_key() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench_copy.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)
    for key in (*KEYS, *MANY_CORES):
        assert results[key] > 0
        assert results["spread"][key]["n"] >= (2 if key in KEYS else 1)
    assert results["quick"] is True
    assert set(results["load"]) == {"before", "after"}


@pytest.mark.timeout(300)
def test_what_many_cores_carry_alone() -> None:
    """Mean and p99 stand beside the median of every rate; nothing else is measured."""
    command = [sys.executable, str(ROOT / "scripts" / "bench_copy.py"), "--quick", "--json", "--only", "streams", "shm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)
    for key in MANY_CORES:
        assert results[key] > 0
    for key, value in results["spread"].items():
        assert key.startswith("cpu.rank"), key
        if "bytes_per_s" in key:
            assert value["low"] <= value["mean"] <= value["high"] and value["p99"] <= value["median"]


def test_impossible_number_of_rounds() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench_copy.py"), "--rounds", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 2
    assert "--rounds -1" in done.stderr and "allowed" in done.stderr
