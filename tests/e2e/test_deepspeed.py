"""Whole DeepSpeed jobs, killed at every point: losses, parameters, optimizer state and RNG as of the uninterrupted
job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "train_gpt.py")
STEPS = 14
KILLS = ("2 3 forward", "0 5 backward", "1 7 step", "3 9 after-step", "2 11 copying", "0 12 step")
#: What `make test` kills: both of two ranks, at every point.
OF_TWO = ("1 3 forward", "0 5 backward", "1 7 step", "0 9 after-step", "1 11 copying")


def arguments(config: str, extra: tuple[str, ...]) -> list[str]:
    file = ROOT / "configs" / "deepspeed" / f"{config}.json"
    return ["--deepspeed_config", str(file), "--size", "tiny", "--steps", str(STEPS), *extra]


slow = pytest.mark.slow
CASES = [
    pytest.param(
        "zero2_bf16", ("--gas", "2", "--optimizer", "cpu_adam", "--num-workers", "2"), id="zero2-gas2-cpu_adam-workers",
        marks=slow,
    ),
    pytest.param("zero1_bf16", (), id="zero1-bf16", marks=slow),
    pytest.param("zero1_bf16_adamw", ("--optimizer", "config"), id="zero1-fused-adam", marks=slow),
    pytest.param("zero0_bf16", ("--epochs", "2"), id="zero0-bf16-epochs", marks=slow),
    pytest.param("zero1_fp32", ("--gas", "2", "--epochs", "2"), id="zero1-fp32-gas2-epochs", marks=slow),
    pytest.param("zero2_bf16", (), id="zero2-bf16", marks=slow),
    pytest.param("zero1_bf16", ("--optimizer", "cpu_adam"), id="zero1-cpu_adam", marks=slow),
    pytest.param("zero0_fp32", ("--gas", "2",), id="zero0-fp32-gas2", marks=slow),
    pytest.param("zero2_fp32", ("--num-workers", "2",), id="zero2-fp32-workers", marks=slow),
]  # fmt: skip


def both(tmp_path: Path, config: str, extra: tuple[str, ...], *kills: str, ranks: int = 4) -> Job:
    """The job uninterrupted and with `kills`; they must agree."""

    def places(folder: Path) -> list[str]:
        return ["--result", str(folder / "result.json"), "--data-cache", str(tmp_path / "data")]

    words, out = arguments(config, extra), tmp_path / "job"
    wanted = results(uninterrupted(SCRIPT, words, places, ranks), ranks)
    job = fftrain(
        out, [SCRIPT, *words, *places(out)], "--emulate-nodes", "2", "--spares", "1", *injections(*kills),
        timeout_s=400, ranks=ranks,
    )  # fmt: skip
    assert_same(job, wanted)
    return job


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("config", "extra"), CASES)
def test_six_kills_in_one_run(tmp_path: Path, config: str, extra: tuple[str, ...]) -> None:
    job = both(tmp_path, config, extra, *KILLS)
    assert len(job.of("failover")) == len(KILLS)


@pytest.mark.timeout(600)
def test_every_point_of_two_ranks(tmp_path: Path) -> None:
    """ZeRO 2 with accumulation, DeepSpeed's CPU Adam and a loader's processes."""
    extra = ("--gas", "2", "--optimizer", "cpu_adam", "--num-workers", "1", "--sequence", "16")
    job = both(tmp_path, "zero2_bf16", extra, *OF_TWO, ranks=2)
    assert len(job.of("failover")) == len(OF_TWO)


@pytest.mark.timeout(600)
@slow  # test_intervals.py has the same layout
def test_two_kills_over_two_epochs(tmp_path: Path) -> None:
    """The other stage that shards the optimizer: ZeRO 1, with what "AdamW" in the configuration makes: FusedAdam."""
    extra = ("--epochs", "2", "--optimizer", "config")
    job = both(tmp_path, "zero1_bf16_adamw", extra, "1 4 backward", "0 11 after-step", ranks=2)
    assert len(job.of("failover")) == 2


@pytest.mark.timeout(600)
@slow  # deepspeed/test_end_to_end.py has a quick one
@pytest.mark.parametrize("config", ["zero3_fp32", "zero3_bf16"])
def test_zero3(tmp_path: Path, config: str) -> None:
    """Parameters, too, are partitioned. A kill meets survivors with some of them gathered or in flight."""
    kills = ("1 3 forward", "0 4 backward", "1 6 step", "0 8 after-step", "1 9 backward", "0 10 forward", "0 11 step")
    job = both(tmp_path, config, (), *kills, ranks=2)
    assert len(job.of("failover")) == len(kills)


@pytest.mark.timeout(600)
@slow
def test_random_moments(tmp_path: Path) -> None:
    moments = ((1, 3), (3, 6), (0, 9), (2, 12))
    kills = [f"{rank} {iteration} random seed={iteration}" for rank, iteration in moments]
    job = both(tmp_path, "zero1_bf16", (), *kills)
    assert len(job.of("failover")) >= 3  # a random kill may fall into another recovery
