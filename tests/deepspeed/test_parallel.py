"""Ranks that share a sample: sequence parallelism (Ulysses) and tensor parallelism."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted

SCRIPT = str(Path(__file__).with_name("parallel_script.py"))
BF16 = {"bf16": {"enabled": True}}
WHOLE = {"stage": 3, "stage3_param_persistence_threshold": 64}
KINDS: dict[str, dict[str, Any]] = {
    "zero0_fp32": {"zero_optimization": {"stage": 0}},
    "zero1_bf16": {"zero_optimization": {"stage": 1}, **BF16},
    "zero2_fp32": {"zero_optimization": {"stage": 2}},
    "zero3_bf16": {"zero_optimization": WHOLE, **BF16},
}


def job_of(out: Path, layout: str, kind: str, words: list[str], *kills: str, ranks: int) -> tuple[Job, dict[int, Any]]:
    """A job with `kills`, and the results of the uninterrupted training."""
    given = KINDS[kind]
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5,
        "steps_per_print": 1000000, "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
        **given, "zero_optimization": {"reduce_bucket_size": 1000000, **given["zero_optimization"]},
        "ff_failover": {"enabled": True},
    }  # fmt: skip
    words = [layout, "--config", json.dumps(config), *words]
    alone = uninterrupted(SCRIPT, words, lambda folder: ["--result", str(folder / "result.json")], ranks)
    job = fftrain(
        out, [SCRIPT, *words, "--result", str(out / "result.json")], "--emulate-nodes", "2",
        *injections(*kills), ranks=ranks, timeout_s=560,
    )  # fmt: skip
    return job, results(alone, ranks)


def survives(job: Job, wanted: dict[int, Any], deaths: int) -> None:
    assert_same(job, wanted)
    assert len(job.of("failover")) == deaths


def test_a_shared_sequence_survives(tmp_path: Path) -> None:
    kills = ("0 2 backward", "1 4 step")
    survives(*job_of(tmp_path, "ulysses", "zero1_bf16", ["--usual"], *kills, ranks=2), len(kills))


@pytest.mark.slow
def test_a_loss_that_is_added_up_outside_of_the_model(tmp_path: Path) -> None:
    """As ALST's recipe does. Its backward pass has a collective: refused in the usual loop, and exact in the other."""
    job, _ = job_of(tmp_path / "usual", "ulysses", "zero1_bf16", ["--usual", "--own-loss"], ranks=2)
    assert job.code != 0 and "reduce() is called in the backward pass of a loss that" in job.stderr + job.stdout
    kills = ("1 2 backward", "0 5 forward")
    survives(*job_of(tmp_path, "ulysses", "zero1_bf16", ["--own-loss"], *kills, ranks=2), len(kills))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "kind"),
    [*(("ulysses", kind) for kind in KINDS), *(("tensor", kind) for kind in KINDS), ("own-mpu", "zero1_bf16")],
)
def test_two_groups_of_two_ranks_survive(layout: str, kind: str, tmp_path: Path) -> None:
    kills = ("0 2 forward", "3 4 backward", "1 6 step", "2 7 after-step")
    survives(*job_of(tmp_path, layout, kind, [], *kills, ranks=4), len(kills))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "kind"),
    [("mesh", "zero1_bf16"), ("hf", "zero3_bf16"), ("autotp", "zero0_fp32"), ("autotp", "zero1_bf16")],
)
def test_two_groups_of_two_ranks_survive_in_the_usual_loop(layout: str, kind: str, tmp_path: Path) -> None:
    kills = ("0 1 step", "3 4 backward", "1 6 forward", "2 7 after-step")  # before 1's step nothing may be safe yet
    survives(*job_of(tmp_path, layout, kind, ["--usual"], *kills, ranks=4), len(kills))
