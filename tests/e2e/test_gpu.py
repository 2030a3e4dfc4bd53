"""Whole jobs on GPUs, killed at every point, against the same job uninterrupted on the same GPUs, to the bit.

NCCL takes no two ranks on one GPU. So jobs of four ranks share what there is over gloo, which carries CUDA tensors,
with an NCCL group of one beside it (not so Megatron's: gloo has no reduce-scatter or coalesced all-reduce for these).
NCCL alone is tested with one rank per GPU, and with survivors where there are two.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, agent_pid, committed, fftrain, torchrun, toy, wait_for

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.timeout(600),
]
several = pytest.mark.skipif(GPUS < 2, reason=f"NCCL with survivors needs 2 CUDA devices, torch sees {GPUS}")
ROOT = Path(__file__).parents[2]
NODES = ("--emulate-nodes", "2", "--spares", "2")
KILLS = ("2 3 forward", "0 5 backward", "1 7 step", "3 9 after-step", "2 11 copying", "0 12 step")
STEPS = 14
OPTIMIZERS = {"deepspeed": "adamw", "deepspeed-fused-adam": "config"}
SHARED = ("--device", "cuda", "--shard", "1000000", "--nccl-alone", "--pause", "0.3")
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


def train_gpt(out: Path, *extra: str, optimizer: str = "adamw") -> list[str]:
    """optimizer: "config" is DeepSpeed's FusedAdam, which the JSON file's AdamW becomes on a GPU."""
    name = "zero1_bf16_adamw.json" if optimizer == "config" else "zero1_bf16.json"
    return [
        str(ROOT / "scripts" / "train_gpt.py"), "--deepspeed_config", str(ROOT / "configs" / "deepspeed" / name),
        "--size", "tiny", "--deterministic", "--optimizer", optimizer,
        "--steps", str(STEPS), "--result", str(out / "result.json"), "--data-cache", str(out.parent / "data"), *extra,
    ]  # fmt: skip


def both_deepspeed(
    tmp_path: Path, ranks: int, kills: tuple[str, ...], *options: str, backend: str, optimizer: str = "adamw"
) -> None:
    """The DeepSpeed job uninterrupted and with `kills`; they must agree."""
    pytest.importorskip("deepspeed")
    done = torchrun(train_gpt(tmp_path / "reference", "--backend", backend, optimizer=optimizer), ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    script = train_gpt(tmp_path / "job", "--backend", backend, optimizer=optimizer)
    job = fftrain(tmp_path / "job", script, *options, *injections(*kills), ranks=ranks, timeout_s=300)
    assert_same(job, results(tmp_path / "reference", ranks))
    show(job)
    assert len(job.of("failover")) == len(kills)


def both_megatron(tmp_path: Path, ranks: int, kills: tuple[str, ...], *options: str) -> None:
    """The Megatron job uninterrupted and with `kills`; they must agree."""
    pytest.importorskip("megatron.core")
    extra = ("--bf16", "--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather")

    def script(out: Path) -> list[str]:
        return [str(ROOT / "tests" / "megatron" / "train_tiny.py"), "--result", str(out / "result.json"), *extra]

    done = torchrun(script(tmp_path / "reference"), ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [*script(tmp_path / "job"), "--ff-failover"]
    job = fftrain(tmp_path / "job", command, *options, *injections(*kills), ranks=ranks, timeout_s=300)
    assert_same(job, results(tmp_path / "reference", ranks))
    show(job)
    assert len(job.of("failover")) == len(kills)


def test_ranks_that_share_a_gpu(tmp_path: Path) -> None:
    wanted = toy_reference(tmp_path / "reference", 4, *SHARED)
    job = fftrain(tmp_path, toy(tmp_path, STEPS, *SHARED), *NODES, *injections(*KILLS))
    assert_same_toy(job, wanted)
    assert [event["dead"] for event in job.of("failover")] == [[int(kill.split()[0])] for kill in KILLS]


def test_a_lost_node_comes_back_from_its_neighbours_memory(tmp_path: Path) -> None:
    """No slot of the dead ranks' own is left: the replicas are restored into the GPU's memory."""

    def kill_agent(out: Path, process: subprocess.Popen[str]) -> None:
        wait_for(out, committed(5))
        os.kill(agent_pid(out, 1), signal.SIGKILL)

    config = tmp_path / "ff.json"
    config.write_text('{"pacing": true}')  # the NCCL groups' collectives are followed by events
    wanted = toy_reference(tmp_path / "reference", 4, *SHARED)
    script = toy(tmp_path, STEPS, *SHARED)
    job = fftrain(tmp_path, script, "--emulate-nodes", "2", "--ff-config", str(config), meanwhile=kill_agent)
    assert_same_toy(job, wanted)
    assert job.of("failover")[0]["newcomers"] == [2, 3]


def test_deepspeed_ranks_that_share_a_gpu(tmp_path: Path) -> None:
    both_deepspeed(tmp_path, 4, KILLS, *NODES, backend="gloo")


@pytest.mark.parametrize("trainer", ["toy", "deepspeed", "deepspeed-fused-adam", "megatron"])
def test_the_only_rank_over_nccl(tmp_path: Path, trainer: str) -> None:
    kills = ("0 3 backward", "0 6 step", "0 9 copying")
    if trainer.startswith("deepspeed"):
        both_deepspeed(tmp_path, 1, kills, "--spares", "1", backend="nccl", optimizer=OPTIMIZERS[trainer])
        return
    if trainer == "megatron":
        both_megatron(tmp_path, 1, kills, "--spares", "1")
        return
    wanted = toy_reference(tmp_path / "reference", 1, *NCCL)
    job = fftrain(tmp_path, toy(tmp_path, STEPS, *NCCL), "--spares", "1", *injections(*kills), ranks=1)
    assert_same_toy(job, wanted)
    assert len(job.of("failover")) == len(kills)


@several
@pytest.mark.parametrize("trainer", ["toy", "deepspeed", "deepspeed-fused-adam", "megatron"])
def test_survivors_over_nccl(tmp_path: Path, trainer: str) -> None:
    """Survivors wait inside a kernel of NCCL that ends only when its communicator is aborted."""
    ranks = GPUS - GPUS % 2
    kills = ("1 3 backward", "0 5 step", "1 7 after-step", "0 9 copying", "1 11 forward")
    if trainer.startswith("deepspeed"):
        both_deepspeed(tmp_path, ranks, kills, *NODES, backend="nccl", optimizer=OPTIMIZERS[trainer])
        return
    if trainer == "megatron":
        both_megatron(tmp_path, ranks, kills[:4], *NODES)
        return
    wanted = toy_reference(tmp_path / "reference", ranks, *NCCL)
    job = fftrain(tmp_path, toy(tmp_path, STEPS, *NCCL), *NODES, *injections(*kills), ranks=ranks)
    assert_same_toy(job, wanted)
    assert len(job.of("failover")) == len(kills)
