"""Survivors over NCCL: whole jobs on two GPUs or more, one rank each, against the same job uninterrupted."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.compare import injections
from tests.e2e.gpu_jobs import (
    GPUS,
    NCCL,
    NODES,
    OPTIMIZERS,
    STEPS,
    assert_same_toy,
    both_deepspeed,
    both_megatron,
    set_before_the_job,
    toy_reference,
)  # fmt: skip
from tests.e2e.jobs import fftrain, toy, wait_for

RANKS = GPUS - GPUS % 2
pytestmark = [
    pytest.mark.skipif(GPUS < 2, reason=f"NCCL with survivors needs 2 CUDA devices, torch sees {GPUS}"),
    pytest.mark.timeout(600),
]


@pytest.fixture(autouse=True)
def warm_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    set_before_the_job(monkeypatch)


@pytest.mark.parametrize("trainer", ["toy", "deepspeed", "deepspeed-fused-adam", "megatron"])
def test_survivors_over_nccl(tmp_path: Path, trainer: str) -> None:
    """Survivors wait inside a kernel of NCCL that ends only when its communicator is aborted."""
    kills = ("1 3 backward", "0 5 step", "1 7 after-step", "0 9 copying", "1 11 forward")
    if trainer.startswith("deepspeed"):
        both_deepspeed(tmp_path, RANKS, kills, *NODES, backend="nccl", optimizer=OPTIMIZERS[trainer])
        return
    if trainer == "megatron":
        both_megatron(tmp_path, RANKS, kills[:4], *NODES)
        return
    wanted = toy_reference(tmp_path / "reference", RANKS, *NCCL)
    job = fftrain(tmp_path, toy(tmp_path, STEPS, *NCCL), *NODES, *injections(*kills), ranks=RANKS)
    assert_same_toy(job, wanted)
    assert len(job.of("failover")) == len(kills)


@pytest.mark.parametrize(
    ("config", "optimizer"),
    [
        ("zero2_bf16.json", "adamw"),
        ("zero3_bf16.json", "adamw"),
        ("zero2_offload.json", "config"),
        ("zero3_offload.json", "config"),
    ],
)
def test_stages_of_zero(tmp_path: Path, config: str, optimizer: str) -> None:
    """Stage 3 gathers parameters in the middle of forward and backward; offload steps on the host."""
    kills = ("1 3 backward", "0 5 forward", "1 7 step", "0 9 copying")
    both_deepspeed(tmp_path, RANKS, kills, *NODES, backend="nccl", optimizer=optimizer, config=config)


TP2, PP2 = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
VPP2 = ("--num-layers-per-virtual-pipeline-stage", "1")
EP2 = ("--num-experts", "4", "--expert-model-parallel-size", "2")


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(TP2, id="tp2"),
        pytest.param(PP2, id="pp2"),
        pytest.param((*PP2, *VPP2), id="pp2-vpp2"),
        pytest.param(EP2, id="ep2"),
    ],
)
def test_layouts_of_megatron(tmp_path: Path, layout: tuple[str, ...]) -> None:
    """A death while sends and receives, all-to-alls and tensor-parallel sums are under way."""
    kills = ("1 3 backward", "0 5 forward", "1 7 step", "0 8 backward")
    both_megatron(tmp_path, 2, kills, *NODES, layout=layout)


@pytest.mark.skipif(GPUS < 4, reason=f"somebody has to survive: needs 4 CUDA devices, torch sees {GPUS}")
def test_both_ranks_of_a_node_at_once(tmp_path: Path) -> None:
    wanted = toy_reference(tmp_path / "reference", 4, *NCCL)
    kills = ("0 4 backward", "1 4 backward", "2 9 step", "3 9 forward")
    job = fftrain(tmp_path, toy(tmp_path, STEPS, *NCCL), *NODES, *injections(*kills), ranks=4)
    assert_same_toy(job, wanted)
    assert sorted(rank for event in job.of("failover") for rank in event["newcomers"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", ["hang", "device"])
def test_a_rank_that_does_not_die_by_itself(tmp_path: Path, fault: str) -> None:
    """hang: it never enters the collective that the other is in.  device: a kernel of it fails."""
    wanted = toy_reference(tmp_path / "reference", 2, *NCCL)
    config = tmp_path / "ff.json"
    config.write_text('{"hang_timeout_s": 5.0}' if fault == "hang" else "{}")
    script = toy(tmp_path, STEPS, *NCCL, "--fault", f"{fault}:1:6")
    job = fftrain(tmp_path, script, *NODES, "--ff-config", str(config), ranks=2)
    assert_same_toy(job, wanted)
    assert [event["newcomers"] for event in job.of("failover")] == [[1]]
    assert [event["rank"] for event in job.of("hang")] == ([1] if fault == "hang" else [])


def test_barriers_stay_on_the_ranks_own_devices(tmp_path: Path) -> None:
    """A group that was connected anew has used no device yet when the iteration begins with a barrier."""
    arguments = (*NCCL, "--mirrored")
    wanted = toy_reference(tmp_path / "reference", RANKS, *arguments)
    kills = ("1 4 backward", "0 7 forward")
    job = fftrain(tmp_path, toy(tmp_path, STEPS, *arguments), *NODES, *injections(*kills), ranks=RANKS)
    assert_same_toy(job, wanted)
    assert len(job.of("failover")) == len(kills)


def test_a_death_while_the_devices_queue_is_full(tmp_path: Path) -> None:
    """The host is thousands of kernels ahead of the device when the communicator is aborted."""
    arguments = (*NCCL, "--queued", "3000")
    wanted = toy_reference(tmp_path / "reference", 2, *arguments)
    kills = ("1 4 backward", "0 7 backward", "1 9 step")
    job = fftrain(tmp_path, toy(tmp_path, STEPS, *arguments), *NODES, *injections(*kills), ranks=2)
    assert_same_toy(job, wanted)
    assert len(job.of("failover")) == len(kills)


def test_twenty_kills_leave_nothing_on_the_survivors_device(tmp_path: Path) -> None:
    """Communicators, streams and events of old epochs: the device's memory is as after two."""
    steps, used = 64, dict[int, int]()

    def look(out: Path, process: subprocess.Popen[str]) -> None:
        for failovers in (2, 20):
            wait_for(out, lambda events: _failovers(events) >= failovers)  # noqa: B023 (called at once)
            time.sleep(0.5)  # an abort may still be under way: it takes half a second
            free, total = torch.cuda.mem_get_info(0)
            used[failovers] = total - free

    config = tmp_path / "ff.json"
    config.write_text('{"spare_device_memory_bytes": 0}')
    script = toy(tmp_path, steps, *NCCL, "--pause", "0.3")
    kills = tuple(f"1 {3 * number} backward" for number in range(1, 21))
    options = (*NODES, "--ff-config", str(config))
    job = fftrain(tmp_path, script, *options, *injections(*kills), ranks=2, timeout_s=400, meanwhile=look)
    assert job.code == 0, job.stderr[-4000:]
    assert _failovers(job.events) == 20
    print(f"used on device 0, bytes: {used}")
    assert used[20] - used[2] < 64 << 20


def _failovers(events: list[dict[str, Any]]) -> int:
    return sum(event["kind"] == "failover" for event in events)
