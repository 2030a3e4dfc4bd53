"""Whole jobs on one GPU, killed at every point, against the same job uninterrupted on the same GPU, to the bit.

NCCL takes no two ranks on one GPU. So jobs of four ranks share what there is over gloo, which carries CUDA tensors,
with an NCCL group of one beside it (not so Megatron's: gloo has no reduce-scatter or coalesced all-reduce for these).
NCCL alone is tested with one rank. With survivors: test_two_gpus.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.e2e.compare import injections
from tests.e2e.gpu_jobs import (
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
from tests.e2e.jobs import agent_pid, committed, fftrain, toy, wait_for

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.timeout(600),
]
KILLS = ("2 3 forward", "0 5 backward", "1 7 step", "3 9 after-step", "2 11 copying", "0 12 step")
SHARED = ("--device", "cuda", "--shard", "1000000", "--nccl-alone", "--pause", "0.3")


@pytest.fixture(autouse=True)
def warm_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    set_before_the_job(monkeypatch)


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
