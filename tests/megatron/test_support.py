"""What cannot be protected is refused before training, all of it at once, by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.errors import UnsupportedError
from ff_megatron import support

FINE: dict[str, Any] = {"use_distributed_optimizer": True, "dataloader_type": "single", "load": None, "fp8": None}


def test_a_usual_job_is_fine() -> None:
    support.check_arguments(SimpleNamespace(**FINE, context_parallel_size=1, cuda_graph_impl="none"), False)
    support.check_arguments(SimpleNamespace(**FINE, pipeline_model_parallel_size=4), False)
    support.check_arguments(SimpleNamespace(**FINE, context_parallel_size=2), False)
    for name in ("async_save", "profile", "log_energy", "log_straggler", "run_workload_inspector_server"):
        support.check_arguments(SimpleNamespace(**FINE, **{name: True}), False)
    experts = {"num_experts": 8, "expert_model_parallel_size": 4, "moe_token_dispatcher_type": "allgather"}
    support.check_arguments(SimpleNamespace(**FINE, **experts), False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("inprocess_restart", True, "--inprocess-restart runs all of pretrain.. again"),
        ("enable_ft_package", True, "--enable-ft-package kills and restarts"),
        ("use_megatron_fsdp", True, "--use-megatron-fsdp .*--use-distributed-optimizer"),
        ("use_torch_fsdp2", True, "--use-torch-fsdp2"),
        ("fp8", "hybrid", "--fp8-format: .* use --bf16"),
        ("optimizer_cpu_offload", True, "--optimizer-cpu-offload"),
        ("exp_avg_dtype", torch.uint8, "--exp-avg-dtype fp8: .* allowed: fp32, fp16, bf16"),
        ("exp_avg_sq_dtype", torch.uint8, "--exp-avg-sq-dtype fp8"),
        ("perform_rl_step", True, "--perform-rl-step"),
        ("cuda_graph_impl", "local", "--cuda-graph-impl"),
        ("moe_enable_deepep", True, "--moe-enable-deepep: .* use --moe-token-dispatcher-type alltoall"),
        ("moe_enable_routing_replay", True, "--moe-enable-routing-replay"),
        ("overlap_moe_expert_parallel_comm", True, "--overlap-moe-expert-parallel-comm"),
        ("qk_clip", True, "--qk-clip changes weights after the optimizer step"),
        ("gtp_weight_remat_size", 2, "--tensor-parallel-num-weight-shards"),
        ("fault_injector_ranks", "1", "--fault-injector-ranks: .* use `fftrain run --inject`"),
        ("optimizer_cuda_graph", True, "--optimizer-cuda-graph"),
        ("fine_grained_activation_offloading", True, "--fine-grained-activation-offloading"),
        ("moe_paged_stash", True, "--moe-paged-stash"),
        ("fim_data", True, "--fim-data: .* leave it out"),
        ("tp_comm_overlap", True, "--tp-comm-overlap: .* leave it out"),
        ("symmetric_ar_type", "one_shot", "--symmetric-ar-type: .* leave it out"),
        ("nccl_ub", True, "--use-nccl-ub: .* leave it out"),
        ("use_sharp", True, "--use-sharp: .* leave it out"),
        ("cpu_offloading", True, "--cpu-offloading-num-layers: .* leave it out"),
        ("moe_router_force_biased", -0.5, "--moe-router-force-biased: .* leave it out"),
        ("logits_save_dir", "logits", "--logits-save-dir: .* leave it out"),
        ("dataloader_type", "external", "--dataloader-type external: .* allowed: single, cyclic"),
    ],
)
def test_refusals(name: str, value: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        support.check_arguments(SimpleNamespace(**{**FINE, name: value}), False)
    assert "leave --ff-failover out" in str(caught.value)


def test_dispatchers_with_connections_of_their_own() -> None:
    with pytest.raises(UnsupportedError, match=r"--moe-token-dispatcher-type flex: .* allowed: alltoall, allgather"):
        support.check_arguments(SimpleNamespace(**FINE, num_experts=8, moe_token_dispatcher_type="flex"), False)


def test_a_version_that_nobody_has_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron.core.__version__", "0.20.0")
    with pytest.raises(UnsupportedError, match=r"megatron-core 0\.20\.0 cannot be protected; allowed: 0\.16\.1 to "):
        support.check_arguments(SimpleNamespace(**FINE), False)


def test_all_obstacles_at_once() -> None:
    with pytest.raises(UnsupportedError, match=r"--inprocess-restart.*--skip-train.*--ff-persist"):
        support.check_arguments(SimpleNamespace(**FINE, inprocess_restart=True, skip_train=True), True)
