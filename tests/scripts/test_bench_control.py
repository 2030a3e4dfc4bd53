"""scripts/bench_control.py with a few agents: every number is there, and nobody waits for a heartbeat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_control.py"


def test_a_few_agents(tmp_path: Path) -> None:
    file = tmp_path / "control.json"
    words = ["--agents", "4", "--ranks", "2", "--seconds", "1", "--deaths", "2", "--json", str(file)]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    assert (found["agents"], found["ranks"]) == (4, 2)
    assert found["controller_cores"] > 0 and found["controller_rss_mb"] > 10
    for name in ("w_ms", "halt_ms", "resume_ms"):
        spread = found[name]
        assert 0 < spread["median"] <= spread["p99"] <= spread["most"] and spread["mean"] > 0


@pytest.mark.parametrize("words", [["--agents", "1"], ["--seconds", "0"]])
def test_what_it_does_not_take(words: list[str]) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--agents: 2 or more" in done.stderr
