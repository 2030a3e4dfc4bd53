"""Jobs on GPUs, and the same jobs uninterrupted, for the tests that compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e import jobs
from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, torchrun, toy

GPUS = torch.cuda.device_count()
ROOT = Path(__file__).parents[2]
NODES = ("--emulate-nodes", "2", "--spares", "2")
STEPS = 14
OPTIMIZERS = {"deepspeed": "adamw", "deepspeed-fused-adam": "config"}
NCCL = ("--device", "cuda", "--shard", "1000000", "--backend", "nccl")


def toy_results(out: Path) -> dict[int, Any]:
    return {int(p.stem[4:]): json.loads(p.read_text()) for p in sorted((out / "results").glob("rank*.json"))}


def toy_reference(out: Path, ranks: int, *arguments: str) -> dict[int, Any]:
    done = torchrun(toy(out, STEPS, *arguments), ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    return toy_results(out)


def assert_same_toy(job: Job, wanted: dict[int, Any]) -> None:
    assert job.code == 0, job.stderr[-4000:]
    show(job)
    found = toy_results(job.out)
    assert found.keys() == wanted.keys()
    for rank in wanted:
        assert found[rank]["losses"] == wanted[rank]["losses"]
        assert found[rank]["digest"] == wanted[rank]["digest"], f"rank {rank} differs"


def show(job: Job) -> None:
    """Each failover's duration and phases, in the test's output."""
    for event in job.of("failover"):
        phases = ", ".join(f"{name} {seconds:.3f}" for name, seconds in event["phases"].items())
        print(f"failover of ranks {event['dead']}, {event['spare']}: {event['total_s']:.3f} s: {phases}")


def train_gpt(out: Path, *extra: str, optimizer: str = "adamw", config: str = "") -> list[str]:
    """optimizer: "config" is DeepSpeed's FusedAdam, which the JSON file's AdamW becomes on a GPU."""
    name = config or ("zero1_bf16_adamw.json" if optimizer == "config" else "zero1_bf16.json")
    return [
        str(ROOT / "scripts" / "train_gpt.py"), "--deepspeed_config", str(ROOT / "configs" / "deepspeed" / name),
        "--size", "tiny", "--deterministic", "--optimizer", optimizer,
        "--steps", str(STEPS), "--result", str(out / "result.json"), "--data-cache", str(out.parent / "data"), *extra,
    ]  # fmt: skip


def both_deepspeed(
    tmp_path: Path,
    ranks: int,
    kills: tuple[str, ...],
    *options: str,
    backend: str,
    optimizer: str = "adamw",
    config: str = "",
) -> None:
    """The DeepSpeed job uninterrupted and with `kills`; they must agree."""
    pytest.importorskip("deepspeed")
    how = {"optimizer": optimizer, "config": config}
    done = torchrun(train_gpt(tmp_path / "reference", "--backend", backend, **how), ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    script = train_gpt(tmp_path / "job", "--backend", backend, **how)
    job = fftrain(tmp_path / "job", script, *options, *injections(*kills), ranks=ranks, timeout_s=300)
    assert_same(job, results(tmp_path / "reference", ranks))
    show(job)
    assert len(job.of("failover")) == len(kills)


def both_megatron(
    tmp_path: Path, ranks: int, kills: tuple[str, ...], *options: str, layout: tuple[str, ...] = ()
) -> None:
    """The Megatron job uninterrupted and with `kills`; they must agree."""
    pytest.importorskip("megatron.core")
    extra = ("--bf16", "--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather", *layout)

    def script(out: Path) -> list[str]:
        return [str(ROOT / "tests" / "megatron" / "train_tiny.py"), "--result", str(out / "result.json"), *extra]

    done = torchrun(script(tmp_path / "reference"), ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [*script(tmp_path / "job"), "--ff-failover"]
    job = fftrain(tmp_path / "job", command, *options, *injections(*kills), ranks=ranks, timeout_s=300)
    assert_same(job, results(tmp_path / "reference", ranks))
    show(job)
    assert len(job.of("failover")) == len(kills)


def set_before_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """What deterministic scripts set for cuBLAS. Set by the script alone, spares leave first kernels to the rank.

    A machine may list architectures to build for. DeepSpeed cannot read all of them ("9.0a"); without a list it takes
    the device's.
    """
    monkeypatch.setitem(jobs.ENV, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.delitem(jobs.ENV, "TORCH_CUDA_ARCH_LIST", raising=False)
