"""Mixtures of experts: an expert's state is on fewer ranks than the rest, or on one rank only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted

SCRIPT = str(Path(__file__).with_name("moe_script.py"))
FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}
BF16 = {"bf16": {"enabled": True}}

KINDS: dict[str, dict[str, Any]] = {
    "zero0_fp32": {"zero_optimization": {"stage": 0}},
    "zero0_bf16": {"zero_optimization": {"stage": 0}, **BF16},
    "zero1_fp32": {"zero_optimization": {"stage": 1}},
    "zero1_bf16": {"zero_optimization": {"stage": 1}, **BF16},
    "zero1_accumulates_fp32": {"zero_optimization": {"stage": 1}, **BF16, **FP32},  # BF16_Optimizer
    "zero2_bf16": {"zero_optimization": {"stage": 2}, **BF16},
    "zero2_weights": {"zero_optimization": {"stage": 2}, **BF16, "ff_failover": {"weights_edited": True}},
}


def job_of(
    out: Path, kind: str, words: list[str], *kills: str, ranks: int, own: tuple[str, ...] = ()
) -> tuple[Job, dict[int, Any]]:
    """A job with `kills`, and the results of the uninterrupted training. own: words of the script in the job alone."""
    given = KINDS[kind]
    config = {
        "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5,
        "steps_per_print": 1000000, **given,
        "zero_optimization": {"reduce_bucket_size": 1000000, **given["zero_optimization"]},
        "ff_failover": {"enabled": True, **given.get("ff_failover", {})},
    }  # fmt: skip
    words = ["--config", json.dumps(config), *words]
    alone = uninterrupted(SCRIPT, words, lambda folder: ["--result", str(folder / "result.json")], ranks)
    job = fftrain(
        out, [SCRIPT, *words, *own, "--result", str(out / "result.json")], "--emulate-nodes", "2",
        *injections(*kills), ranks=ranks, timeout_s=560,
    )  # fmt: skip
    return job, results(alone, ranks)


def test_experts_survive(tmp_path: Path) -> None:
    """The experts of a rank are on this rank only, and not partitioned. Checkpoints have a file for each."""
    kills = ("0 2 backward", "1 4 step")
    job, wanted = job_of(tmp_path, "zero0_fp32", [], *kills, ranks=2, own=("--save", str(tmp_path / "saved")))
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills)
    assert len(list((tmp_path / "saved" / "global_step6").glob("layer_0_expert_*"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_experts_of_two_sizes_survive(kind: str, tmp_path: Path) -> None:
    """Each expert of the first layer is on two ranks, each of the second one on a rank."""
    kills = ("0 2 forward", "3 4 backward", "1 6 step", "2 7 after-step")
    job, wanted = job_of(tmp_path, kind, ["--ep", "2", "4", "--frozen"], *kills, ranks=4)
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills)


@pytest.mark.slow
def test_experts_survive_in_the_usual_loop(tmp_path: Path) -> None:
    kills = ("0 2 forward", "3 4 backward", "1 6 step", "2 7 after-step")
    job, wanted = job_of(tmp_path, "zero1_bf16", ["--frozen", "--usual"], *kills, ranks=4)
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills)
