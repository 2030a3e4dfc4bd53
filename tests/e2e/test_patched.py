"""Patched frameworks and no import hooks: ranks are killed, and the jobs end with the bits of uninterrupted ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ff_core.launch.cli import main
from tests.e2e import jobs
from tests.e2e.compare import assert_same, results
from tests.e2e.jobs import Job, fftrain, torchrun
from tests.patching.copies import copy_deepspeed, hashes

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("knows_nothing.py"))
CONFIG = str(ROOT / "configs" / "deepspeed" / "zero1_bf16.json")
RANKS = 2


def words(out: Path, *extra: str) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    return [SCRIPT, "--config", CONFIG, "--result", str(out / "result.json"), *extra]


def where(out: Path) -> list[dict[str, object]]:
    return [json.loads((out / f"where{rank}.json").read_text()) for rank in range(RANKS)]


def killed(out: Path) -> Job:
    """A job without import hooks, of which rank 1 kills itself before its fourth step."""
    return fftrain(
        out, words(out, "--kill", "1:3"), "--emulate-nodes", "2", "--spares", "1", "--no-import-hooks", ranks=RANKS
    )


@pytest.mark.timeout(600)
def test_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    site = copy_deepspeed(tmp_path)
    monkeypatch.setitem(jobs.ENV, "PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    before = hashes(site)

    unpatched = killed(tmp_path / "unpatched")
    assert unpatched.code != 0 and not unpatched.of("failover")

    assert main(["patch", "deepspeed", str(site)]) == 0
    reference = tmp_path / "reference"
    done = torchrun(words(reference), RANKS)
    assert done.returncode == 0, done.stderr[-3000:]
    job = killed(tmp_path / "job")
    assert_same(job, results(reference, RANKS))
    assert len(job.of("failover")) == 1 and (job.out / "killed").exists()
    assert where(job.out) == [{"deepspeed": str(site / "deepspeed/__init__.py"), "ours": True}] * RANKS

    assert main(["patch", "deepspeed", str(site), "--revert"]) == 0
    assert hashes(site) == before
    capfd.readouterr()
