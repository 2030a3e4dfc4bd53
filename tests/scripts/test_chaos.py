"""Faults at random moments: a plan from a seed, and a short run of it on a real job."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from bench.faults import KINDS, plan  # noqa: E402

SCRIPT = ROOT / "scripts" / "chaos.py"


def test_a_seed_gives_the_same_faults() -> None:
    kinds = list(KINDS)
    assert plan(3, 600.0, 10.0, kinds) == plan(3, 600.0, 10.0, kinds) != plan(4, 600.0, 10.0, kinds)
    faults = plan(3, 600.0, 10.0, kinds)
    assert 45 <= len(faults) <= 80 and {fault.kind for fault in faults} == set(kinds)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(faults)]
    assert all(10.0 / 3 <= gap <= 50.0 / 3 for gap in gaps)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--kinds", "kill,flood"], "--kinds flood: allowed: kill, segv"), (["--every", "0"], "allowed: more than 0")],
)
def test_what_it_does_not_take(words: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_three_minutes_of_it(tmp_path: Path) -> None:
    words = ["--minutes", "3", "--seed", "1", "--out", str(tmp_path / "chaos"), "--json", str(tmp_path / "chaos.json")]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["bit_exact"] and not found["left_over"] and sum(found["faults"].values()) >= 6
    assert found["failovers"] >= 6
