"""Real processes under `fftrain run`: ranks are killed, the job ends with the results of a job that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def job(out: Path, config: str, script: list[str], kills: list[str], spares: int = 1) -> str:
    """Run two ranks on two emulated nodes; returns the output. Fails the test unless the job succeeds."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ff_core.launch.cli", "run", "--nproc-per-node", "2", "--emulate-nodes", "2"]
    command += ["--spares", str(spares), "--out-dir", str(out / "events")]
    for kill in kills:
        command += ["--inject", f"kill {kill}"]
    path = str(ROOT / "configs" / "deepspeed" / f"{config}.json")
    done = subprocess.run(
        [*command, *[path if word == "CONFIG" else word for word in script]],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"result.rank{rank}.json").read_text()) for rank in range(2)]


def usual(out: Path, *options: str) -> list[str]:
    script = [str(ROOT / "tests" / "deepspeed" / "usual_script.py"), "--config", "CONFIG"]
    return [*script, "--result", str(out / "result.json"), "--epochs", "2", "--steps", "5", *options]


def test_unmodified_script_survives(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        out.mkdir()
    job(whole, "zero1_bf16", usual(whole), [])
    kills = ["rank=1 iteration=3 at=backward", "rank=0 iteration=6 at=after-step", "rank=1 iteration=10 at=step"]
    output = job(broken, "zero1_bf16", usual(broken, "--destroy"), kills)
    assert output.count("fftrain: failover to epoch") == 3
    for reference, got in zip(results(whole), results(broken), strict=True):
        assert got["parameters"] == reference["parameters"]
        assert got["score"] == reference["score"]
        assert got["steps"] == reference["steps"] == 10
        assert got["losses"] == {step: reference["losses"][step] for step in got["losses"]}
    assert len(results(broken)[0]["losses"]) == 5  # of its replacement, from iteration 6 on


@pytest.mark.slow
def test_unmodified_script_with_its_own_loss_survives(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        out.mkdir()
    job(whole, "zero2_bf16", usual(whole, "--own-loss"), [])
    kills = ["rank=1 iteration=2 at=backward", "rank=0 iteration=5 at=after-step"]
    output = job(broken, "zero2_bf16", usual(broken, "--own-loss"), kills)
    assert output.count("is repeated: the loss is not an output of engine(...)") == 2
    for reference, got in zip(results(whole), results(broken), strict=True):
        assert got["parameters"] == reference["parameters"]
        assert got["steps"] == reference["steps"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("zero0_bf16", ["--num-workers", "2"]),
        ("zero0_fp32", ["--optimizer", "cpu_adam", "--gas", "2"]),
        ("zero1_fp32", ["--epochs", "2"]),
        ("zero2_bf16", ["--optimizer", "cpu_adam", "--gas", "2", "--epochs", "2"]),
    ],
)
def test_exact_loop_survives_with_every_layout(config: str, options: list[str], tmp_path: Path) -> None:
    script = [str(ROOT / "scripts" / "train_gpt.py"), "--deepspeed_config", "CONFIG", "--steps", "8"]
    script += ["--sequence", "16", "--data-cache", str(tmp_path / "text"), *options]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        out.mkdir()
    job(whole, config, [*script, "--result", str(whole / "result.json")], [])
    kills = ["rank=0 iteration=2 at=backward", "rank=1 iteration=5 at=forward", "rank=0 iteration=8 at=after-step"]
    job(broken, config, [*script, "--result", str(broken / "result.json")], kills)
    for reference, got in zip(results(whole), results(broken), strict=True):
        for key in ("parameters_sha256", "optimizer_sha256", "rng_sha256", "steps"):
            assert got[key] == reference[key], key
        assert got["losses"] == {step: reference["losses"][step] for step in got["losses"]}
