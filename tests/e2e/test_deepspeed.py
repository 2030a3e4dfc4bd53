"""Whole DeepSpeed jobs, killed at every point: losses, parameters, optimizer state and RNG as of the uninterrupted
job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import fftrain, torchrun

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "train_gpt.py")
STEPS = 14
KILLS = ("2 3 forward", "0 5 backward", "1 7 step", "3 9 after-step", "2 11 copying", "0 12 step")


def words(out: Path, config: str, *extra: str) -> list[str]:
    file = ROOT / "configs" / "deepspeed" / f"{config}.json"
    return [
        SCRIPT, "--deepspeed_config", str(file), "--size", "tiny", "--steps", str(STEPS),
        "--result", str(out / "result.json"), "--data-cache", str(out.parent / "data"), *extra,
    ]  # fmt: skip


def uninterrupted(out: Path, config: str, *extra: str) -> dict[int, Any]:
    out.mkdir(parents=True)
    done = torchrun(words(out, config, *extra))
    assert done.returncode == 0, done.stderr[-3000:]
    return results(out)


CASES = [
    pytest.param("zero1_bf16", (), id="zero1-bf16"),
    pytest.param(
        "zero2_bf16", ("--gas", "2", "--optimizer", "cpu_adam", "--num-workers", "2"), id="zero2-gas2-cpu_adam-workers"
    ),
    pytest.param("zero0_bf16", ("--epochs", "2"), id="zero0-bf16-epochs"),
    pytest.param("zero1_fp32", ("--gas", "2", "--epochs", "2"), id="zero1-fp32-gas2-epochs", marks=pytest.mark.slow),
    pytest.param("zero2_bf16", (), id="zero2-bf16", marks=pytest.mark.slow),
    pytest.param("zero1_bf16", ("--optimizer", "cpu_adam"), id="zero1-cpu_adam", marks=pytest.mark.slow),
    pytest.param("zero0_fp32", ("--gas", "2",), id="zero0-fp32-gas2", marks=pytest.mark.slow),
    pytest.param("zero2_fp32", ("--num-workers", "2",), id="zero2-fp32-workers", marks=pytest.mark.slow),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("config", "extra"), CASES)
def test_six_kills_in_one_run(tmp_path: Path, config: str, extra: tuple[str, ...]) -> None:
    wanted = uninterrupted(tmp_path / "reference", config, *extra)
    job = fftrain(
        tmp_path / "job", words(tmp_path / "job", config, *extra), "--emulate-nodes", "2", "--spares", "1",
        *injections(*KILLS), timeout_s=400,
    )  # fmt: skip
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(KILLS)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_random_moments(tmp_path: Path) -> None:
    wanted = uninterrupted(tmp_path / "reference", "zero1_bf16")
    kills = ((1, 3), (3, 6), (0, 9), (2, 12))
    texts = [f"kill rank={rank} iteration={iteration} at=random seed={iteration}" for rank, iteration in kills]
    job = fftrain(
        tmp_path / "job", words(tmp_path / "job", "zero1_bf16"), "--emulate-nodes", "2", "--spares", "1",
        *[word for text in texts for word in ("--inject", text)], timeout_s=400,
    )  # fmt: skip
    assert_same(job, wanted)
    assert len(job.of("failover")) >= 3  # a random kill may fall into another recovery
