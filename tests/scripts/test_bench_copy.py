"""The copy benchmark measures and says everything that it promises; how fast things are is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    "cpu.copy_over_memcpy", "cpu.send_over_tcp", "cpu.durable_200MB_both_ways_s", "cpu.durable_over_gloo",
    "cpu.blocked_ms", "cpu.send_over_tcp_streams.1", "cpu.send_over_tcp_streams.8", "cpu.send_streams_over_one_tcp.4",
    "cpu.tcp_streams_bytes_per_s.2",
)  # fmt: skip


@pytest.mark.timeout(300)
def test_quick_run_has_every_key() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench_copy.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)
    for key in KEYS:
        assert results[key] > 0
        assert results["spread"][key]["n"] >= 2
    assert results["quick"] is True
    assert set(results["load"]) == {"before", "after"}


def test_impossible_number_of_rounds() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench_copy.py"), "--rounds", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 2
    assert "--rounds -1" in done.stderr and "allowed" in done.stderr
