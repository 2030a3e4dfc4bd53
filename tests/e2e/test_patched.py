"""Patched frameworks and no import hooks: ranks are killed, and the jobs end with the bits of uninterrupted ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ff_core.launch.cli import main
from tests.e2e import jobs, test_megatron_real
from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import LEAN, Job, fftrain, torchrun
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
    return fftrain(out, words(out, "--kill", "1:3"), "--emulate-nodes", "2", "--no-import-hooks", ranks=RANKS)


@pytest.mark.timeout(600)
def test_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    site = copy_deepspeed(tmp_path)
    monkeypatch.setitem(jobs.ENV, "PYTHONPATH", os.pathsep.join([str(site), str(ROOT), LEAN]))
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_with_patched_deepspeed(tmp_path: Path) -> None:
    """Its own operators are compiled anew: their sources lie elsewhere."""
    site = copy_deepspeed(tmp_path)
    before = hashes(site)
    assert main(["patch", "deepspeed", str(site)]) == 0
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
    }  # fmt: skip
    demo = [sys.executable, str(ROOT / "scripts/demo.py"), "--size", "tiny", "--steps", "30", "--no-import-hooks"]
    done = subprocess.run(
        [*demo, "--out", str(tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=1500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "bit-exact: yes" in done.stdout
    assert main(["patch", "deepspeed", str(site), "--revert"]) == 0
    assert hashes(site) == before


@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.skipif(
    not test_megatron_real.CHECKOUT or bool(test_megatron_real.LACKING),
    reason="MEGATRON_LM_PATH names no checkout of Megatron-LM, or six, regex, triton or yaml is not installed",
)
def test_pretrain_gpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout of a version that a patch is made for; its own pretrain_gpt.py does not change."""
    checkout = tmp_path / "Megatron-LM"
    shutil.copytree(str(test_megatron_real.CHECKOUT), checkout, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    before = hashes(checkout)
    monkeypatch.setitem(jobs.ENV, "TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setitem(jobs.ENV, "MEGATRON_LM_PATH", str(checkout))
    kills = injections("1 3 backward", "0 6 after-step")
    options = ("--emulate-nodes", "2", "--spares", "1", "--no-import-hooks", *kills)

    def train(out: Path) -> Job:
        script = [*test_megatron_real.words(out), "--ff-failover"]
        return fftrain(out, script, *options, ranks=RANKS, timeout_s=600)

    unpatched = train(tmp_path / "unpatched")
    assert unpatched.code != 0 and "unrecognized arguments: --ff-failover" in unpatched.stderr

    assert main(["patch", "megatron", str(checkout)]) == 0
    reference = tmp_path / "reference"
    done = torchrun(test_megatron_real.words(reference), RANKS, timeout_s=600)
    assert done.returncode == 0, done.stderr[-3000:]
    job = train(tmp_path / "job")
    assert_same(job, results(reference, RANKS))
    assert len(job.of("failover")) == 2

    assert main(["patch", "megatron", str(checkout), "--revert"]) == 0
    assert hashes(checkout) == before
