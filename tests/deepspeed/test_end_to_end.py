"""Real processes under `fftrain run`: ranks are killed, the job ends with the results of a job that was left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import ENV, Job, fftrain, torchrun, uninterrupted

ROOT = Path(__file__).parents[2]
USUAL = str(ROOT / "tests" / "deepspeed" / "usual_script.py")
STAGE3 = str(ROOT / "tests" / "deepspeed" / "stage3_script.py")
SMALL = str(ROOT / "tests" / "deepspeed" / "small_script.py")
TRAIN_GPT = str(ROOT / "scripts" / "train_gpt.py")


def configured(config: str, script: str, words: list[str]) -> list[str]:
    if script == SMALL:
        return ["--config", config, *words]
    path = str(ROOT / "configs" / "deepspeed" / f"{config}.json")
    return ["--deepspeed_config" if script == TRAIN_GPT else "--config", path, *words]


def places(folder: Path, script: str, out: Path) -> list[str]:
    data = ["--data-cache", str(out / "text")] if script == TRAIN_GPT else []
    return ["--result", str(folder / "result.json"), *data]


def uninterrupted_of(config: str, script: str, words: list[str], out: Path) -> dict[int, Any]:
    """The results of two ranks under plain torchrun."""
    words = configured(config, script, words)
    return results(uninterrupted(script, words, lambda folder: places(folder, script, out), ranks=2), 2)


def killed(
    out: Path, config: str, script: str, words: list[str], kills: tuple[str, ...], *more: str, nodes: int = 2
) -> Job:
    """A job of two ranks on `nodes` emulated nodes with `kills`.  more: words of the script for this job alone."""
    return fftrain(
        out, [script, *configured(config, script, words), *places(out, script, out), *more],
        "--emulate-nodes", str(nodes), "--spares", "1", *injections(*kills), ranks=2, timeout_s=280,
    )  # fmt: skip


def both(
    out: Path, config: str, script: str, words: list[str], kills: tuple[str, ...], *more: str
) -> tuple[Job, dict[int, Any]]:
    """killed(), and the results of the uninterrupted training."""
    wanted = uninterrupted_of(config, script, words, out)
    return killed(out, config, script, words, kills, *more), wanted


def test_unmodified_script_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job as users have it: no process is forked from another, torch's compiler is there. (Nothing of this training
    is compiled.)"""
    words = ["--epochs", "2", "--steps", "5"]
    wanted = uninterrupted_of("zero1_bf16", USUAL, words, tmp_path)
    monkeypatch.delitem(ENV, "TORCHDYNAMO_DISABLE")
    job = killed(tmp_path, "zero1_bf16", USUAL, words, ("0 6 after-step", "1 10 step"), "--destroy", nodes=1)
    assert_same(job, wanted)
    assert len(job.of("failover")) == 2
    assert wanted[0]["steps"] == 10
    assert len(results(tmp_path, 2)[0]["losses"]) == 10  # its replacement has the history of the dead rank


@pytest.mark.slow
def test_unmodified_script_with_its_own_loss_survives(tmp_path: Path) -> None:
    """The loss is not an output of engine(...)."""
    words = ["--epochs", "2", "--steps", "5", "--own-loss"]
    job, wanted = both(tmp_path, "zero2_bf16", USUAL, words, ("1 2 backward", "0 5 after-step"))
    assert_same(job, wanted)
    assert len(job.of("failover")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("zero0_bf16", ["--num-workers", "2"]),
        ("zero0_fp32", ["--optimizer", "cpu_adam", "--gas", "2"]),
        ("zero1_fp32", ["--epochs", "2"]),
        ("zero2_bf16", ["--optimizer", "cpu_adam", "--gas", "2", "--epochs", "2"]),
        ("zero2_offload", ["--optimizer", "config", "--gas", "2"]),
    ],
)
def test_exact_loop_survives_with_every_layout(config: str, options: list[str], tmp_path: Path) -> None:
    words = ["--steps", "8", "--sequence", "16", *options]
    kills = ("0 2 backward", "1 5 forward", "0 8 after-step")
    assert_same(*both(tmp_path, config, TRAIN_GPT, words, kills))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("zero3_fp32", ["--zero-init", "--frozen", "--gather"]),
        pytest.param("zero3_offload", ["--zero-init"], marks=pytest.mark.slow),
    ],
)
def test_zero3_survives(config: str, options: list[str], tmp_path: Path) -> None:
    """The model is made under zero.Init from another seed on each rank, so that a replacement alone gets other values.

    Saves within an iteration are those of the uninterrupted job, too.
    """
    kills = ("1 2 forward", "0 4 backward", "1 6 step", "0 7 after-step")
    job, wanted = both(tmp_path, config, STAGE3, options, kills, "--save", str(tmp_path / "saved"))
    assert_same(job, wanted)
    assert len(job.of("failover")) == 4
    assert {"global_step3", "global_step6", "latest", "weights6.bin"} <= {
        p.name for p in (tmp_path / "saved").iterdir()
    }


@pytest.mark.slow
def test_zero3_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    config = str(ROOT / "configs" / "deepspeed" / "zero3_bf16.json")
    words = ["--config", config, "--result", str(tmp_path / "first" / "result.json"), "--steps", "3", "--frozen"]
    done = torchrun([STAGE3, *words, "--save", str(saved)], 2)
    assert done.returncode == 0, done.stderr[-3000:]
    job, wanted = both(tmp_path, "zero3_bf16", STAGE3, ["--frozen", "--load", str(saved)], ("1 1 backward", "0 4 step"))
    assert_same(job, wanted)
    assert len(job.of("failover")) == 2


OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
FP16: dict[str, tuple[dict[str, Any], str]] = {
    "zero0": ({"stage": 0}, "adamw"),
    "zero1": ({"stage": 1}, "adamw"),
    "zero2": ({"stage": 2}, "adamw"),
    "zero2-offloaded": ({"stage": 2, **OFFLOADED}, "cpu_adam"),
    "zero3": ({"stage": 3, "stage3_param_persistence_threshold": 64}, "adamw"),
    "zero3-offloaded": ({"stage": 3, **OFFLOADED, "offload_param": {"device": "cpu"}}, "cpu_adam"),
}


def small(zero: dict[str, Any], **more: Any) -> str:
    """A configuration for SMALL."""
    return json.dumps(
        {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 1.0,
            "steps_per_print": 1000000,
            "zero_optimization": {"reduce_bucket_size": 1000000, **zero},
            "ff_failover": {"enabled": True},
            **more,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", FP16)
def test_fp16_survives_in_skipped_steps_and_others(layout: str, tmp_path: Path) -> None:
    """A loss is infinite on one rank, or on both: nobody steps, and the scale is halved, or its hysteresis counts."""
    zero, optimizer = FP16[layout]
    scaler = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 2, "hysteresis": 2, "min_loss_scale": 1}
    words = ["--optimizer", optimizer, "--steps", "10", "--overflow", "[[1, 0], [3, 1], [7, 0], [7, 1], [9, 1]]"]
    kills = ("1 1 step", "0 3 backward", "1 5 forward", "0 7 step", "1 8 after-step", "0 9 after-step")
    job, wanted = both(tmp_path, small(zero, fp16=scaler), SMALL, words, kills)
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills) and wanted[0]["skipped"] == 4


@pytest.mark.slow
def test_twin_flow_survives(tmp_path: Path) -> None:
    """Two optimizers step parts of the masters."""
    zero = {"stage": 3, "sub_group_size": 100, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}
    words = ["--optimizer", "cpu_adam", "--two-devices"]
    kills = ("1 2 forward", "0 4 backward", "1 6 step", "0 7 after-step")
    job, wanted = both(tmp_path, small(zero, bf16={"enabled": True}), SMALL, words, kills)
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills)
