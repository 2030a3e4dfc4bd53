"""What cannot be protected, said before training starts, by name and with what would work instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ff_core.errors import UnsupportedError
from ff_megatron import buckets, moments, optimizers, state_map, versions

if TYPE_CHECKING:
    from ff_core.config.schema import FailoverConfig

WORKS = (
    "What works: Adam, with or without --use-distributed-optimizer, --overlap-grad-reduce and --overlap-param-gather, "
    "SGD and Muon, in fp32, bf16 or fp16, with tensor, (virtual) pipeline, context, expert and data parallelism"
)
HINT = "Use that, or leave --ff-failover out to train unprotected."
OWN_HINT = "Use that, or leave ff_megatron.protect() out to train unprotected."

#: argument -> (value that is fine, why another one is not).
_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "inprocess_restart": (
        False,
        "--inprocess-restart runs all of pretrain() again when a rank fails; use it or --ff-failover, not both",
    ),
    "enable_ft_package": (
        False,
        "--enable-ft-package kills and restarts ranks from outside (ft_launcher); `fftrain run` does that itself",
    ),
    "use_megatron_fsdp": (False, "--use-megatron-fsdp shards parameters; use --use-distributed-optimizer"),
    "use_torch_fsdp2": (False, "--use-torch-fsdp2 shards parameters; use --use-distributed-optimizer"),
    "optimizer_cpu_offload": (False, "--optimizer-cpu-offload: the optimizer's state lies in two places"),
    "fp8": (None, "--fp8-format: fp8 parameters and their scales are not copied yet; use --bf16"),
    "fp4": (None, "--fp4-format: fp4 parameters are not copied yet; use --bf16"),
    "perform_rl_step": (False, "--perform-rl-step: reinforcement learning loops are not supported"),
    "skip_train": (False, "--skip-train: there is no training to protect"),
    "overlap_param_gather_with_optimizer_step": (
        False,
        "--overlap-param-gather-with-optimizer-step gathers before the step is over; use --overlap-param-gather",
    ),
    "hybrid_context_parallel": (False, "--hybrid-context-parallel: its data loader cannot be rewound"),
    "fim_data": (
        False, "--fim-data: how a sample is cut depends on those before, which no replacement has read; leave it out",
    ),
    "tp_comm_overlap": (
        False, "--tp-comm-overlap: TransformerEngine's buffers hold connections of their own; leave it out",
    ),
    "symmetric_ar_type": (None, "--symmetric-ar-type: its memory holds connections of its own; leave it out"),
    "nccl_ub": (False, "--use-nccl-ub: buffers are registered with the communicators of their epoch; leave it out"),
    "use_sharp": (
        False, "--use-sharp: groups that are connected again would add up without SHARP, otherwise; leave it out",
    ),
    "cpu_offloading": (
        False, "--cpu-offloading-num-layers: what an interrupted iteration has offloaded stays; leave it out",
    ),
    "enable_cuda_graph": (False, "--enable-cuda-graph: captured graphs hold on to the groups of their epoch"),
    "external_cuda_graph": (False, "--external-cuda-graph: captured graphs hold on to the groups of their epoch"),
    "cuda_graph_impl": ("none", "--cuda-graph-impl: captured graphs hold on to the groups of their epoch"),
    "optimizer_cuda_graph": (False, "--optimizer-cuda-graph: the graph holds on to the optimizer's state of its epoch"),
    "moe_enable_deepep": (
        False,
        "--moe-enable-deepep: its buffers hold connections of their own; use --moe-token-dispatcher-type alltoall",
    ),
    "moe_enable_routing_replay": (False, "--moe-enable-routing-replay: recorded routes are not copied"),
    "overlap_moe_expert_parallel_comm": (
        False, "--overlap-moe-expert-parallel-comm: its schedule cannot be interrupted; leave it out",
    ),
    "qk_clip": (False, "--qk-clip changes weights after the optimizer step, while they are being copied"),
    "moe_router_force_biased": (
        None, "--moe-router-force-biased: biases drawn once, in the first forward, are not copied; leave it out",
    ),
    "moe_use_upcycling": (False, "--moe-use-upcycling: convert the checkpoint in a job of its own first"),
    "gtp_weight_remat_size": (1, "--tensor-parallel-num-weight-shards: gathered weights are not put back"),
    "expert_gtp_weight_remat_size": (
        1, "--expert-tensor-parallel-num-weight-shards: gathered weights are not put back",
    ),
    "logits_load_dir": (None, "--logits-load-dir: a replacement cannot find its place in those logits"),
    "logits_save_dir": (
        None, "--logits-save-dir: what a dead rank had not written yet would be missing; leave it out",
    ),
    "fine_grained_activation_offloading": (
        False, "--fine-grained-activation-offloading: what an interrupted iteration has offloaded stays; leave it out",
    ),
    "moe_paged_stash": (False, "--moe-paged-stash: what it keeps of a forward is not reset; leave it out"),
    "moe_expert_rank_capacity_factor": (
        None, "--moe-expert-rank-capacity-factor: it repeats iterations by itself, unseen; leave it out",
    ),
    "moe_routing_trace_path": (None, "--moe-routing-trace-path: train() would begin the trace again after a failure"),
    "overlap_dispatch_backward_with_experts_wgrad": (
        False, "--overlap-dispatch-backward-with-experts-wgrad: gradients wait in queues that are not reset",
    ),
    "delay_wgrad_compute": (False, "--delay-wgrad-compute: gradients wait in queues that are not reset"),
    "decrease_batch_size_if_needed": (False, "--decrease-batch-size-if-needed: not supported"),
    "gpu_sniff_test_interval": (
        None, "--gpu-sniff-test-interval: it makes process groups within train(), which a replacement would lack",
    ),
    "fault_injector_ranks": (
        None, "--fault-injector-ranks: train() would plan its faults anew after a failure; use `fftrain run --inject`",
    ),
    "fault_injector_num_ranks": (
        None, "--fault-injector-num-ranks: train() would plan its faults anew; use `fftrain run --inject`",
    ),
    "save_dgrads_interval": (None, "--save-dgrads-interval: its hooks would be registered twice after a failure"),
    "save_activations_interval": (
        None, "--save-activations-interval: its hooks would be registered twice after a failure",
    ),
    "save_tokens_per_expert_interval": (
        None, "--save-tokens-per-expert-interval: its hooks would be registered twice after a failure",
    ),
}  # fmt: skip
_CASTS = "weights in a low precision come back as casts of their masters"
_LOADERS = ("single", "cyclic")
_DISPATCHERS = ("alltoall", "allgather")


def check_arguments(args: Any, persist: bool, edited: bool = False) -> None:
    """Before the model is built. persist: the configuration asks for checkpoints of FFTrainer's own. edited: it says
    that the script writes weights itself.

    Raises UnsupportedError listing every obstacle, or naming a version of megatron-core that is none of ours.
    """
    versions.series()
    obstacles = list(_argument_obstacles(args))
    if edited:
        obstacles.append(f"--ff-weights-edited: {_CASTS}")
    if persist:
        obstacles.append("--ff-persist-*: Megatron saves checkpoints itself; use --save and --save-interval")
    _refuse(obstacles)


def check_own(model: list[Any], optimizer: Any, scheduler: Any, config: FailoverConfig) -> None:
    """The same for a loop of the script's own, which has no arguments: their configurations say it, in fields of the
    arguments' names. scheduler: may be None.  config: the job's. Raises UnsupportedError listing every obstacle."""
    versions.series()
    holders = [*(chunk.config for chunk in model), *(chunk.ddp_config for chunk in model)]
    holders += [part.config for part in optimizers.parts(optimizer)]
    obstacles = [*(text for holder in holders for text in _argument_obstacles(holder))]
    if config.weights_edited:
        obstacles.append(f'"weights_edited": {_CASTS}')
    if config.persist.period:
        obstacles.append('"persist": save checkpoints in the loop')
    if scheduler is not None and not hasattr(scheduler, "num_steps"):
        obstacles.append(
            f"the scheduler is a {type(scheduler).__module__}.{type(scheduler).__qualname__}; give megatron-core's "
            "OptimizerParamScheduler, and leave any other out: it is found by itself, or can be registered "
            "(ff_core.register_state)"
        )
    else:
        obstacles += _training_obstacles(model, optimizer, scheduler)
    _refuse(list(dict.fromkeys(obstacles)), OWN_HINT)


def check_training(model: list[Any], optimizer: Any, scheduler: Any) -> None:
    """When everything is built: model, optimizer, schedule. Raises UnsupportedError listing every obstacle."""
    _refuse(list(_training_obstacles(model, optimizer, scheduler)))


def _refuse(obstacles: list[str], hint: str = HINT) -> None:
    if obstacles:
        raise UnsupportedError(f"this job cannot be protected: {'; '.join(obstacles)}. {WORKS}. {hint}")


def _argument_obstacles(args: Any) -> Iterator[str]:
    for name, (fine, why) in _ARGUMENTS.items():
        value = getattr(args, name, fine)
        if value != fine and value:
            yield why
    for name in ("exp_avg_dtype", "exp_avg_sq_dtype"):
        if str(getattr(args, name, None)) in ("fp8", "torch.uint8"):
            yield f"--{name.replace('_', '-')} fp8: fp8 moments are not copied; allowed: fp32, fp16, bf16"
    if getattr(args, "num_experts", None):
        dispatcher = getattr(args, "moe_token_dispatcher_type", _DISPATCHERS[0])
        if dispatcher not in _DISPATCHERS:
            yield (
                f"--moe-token-dispatcher-type {dispatcher}: its buffers hold connections of their own, which cannot be "
                f"remade; allowed: {', '.join(_DISPATCHERS)}"
            )
    if getattr(args, "dataloader_type", "single") not in (*_LOADERS, None):
        yield (
            f"--dataloader-type {args.dataloader_type}: a replacement cannot find its place in data of the script's "
            f"own; allowed: {', '.join(_LOADERS)}"
        )


def _training_obstacles(model: list[Any], optimizer: Any, scheduler: Any) -> Iterator[str]:
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer

    for chunk in model:
        if type(chunk) is not DistributedDataParallel:
            yield f"the model is wrapped in a {type(chunk).__module__}.{type(chunk).__qualname__}"
    if state_map.is_layer_wise(optimizer) and not versions.series().layer_wise:
        yield (
            "--optimizer dist_muon, or muon with --use-distributed-optimizer: this version spreads parameters over "
            "ranks in a way that is not put back; use --optimizer muon without --use-distributed-optimizer"
        )
    if not optimizers.parts(optimizer):
        yield "a rank without trainable parameters (its optimizer is a stub)"
    for part in optimizers.parts(optimizer):
        if type(part) not in (DistributedOptimizer, Float16OptimizerWithFloat16Params, FP32Optimizer):
            yield f"the optimizer is a {type(part).__module__}.{type(part).__qualname__}"
        elif not optimizers.is_adam(part.optimizer):
            yield from moments.words(part.optimizer)
    yield from _missing(model, optimizer, scheduler)


def _missing(model: list[Any], optimizer: Any, scheduler: Any) -> Iterator[str]:
    """Attributes that the state map reads; a version of Megatron without them keeps its state elsewhere."""
    wanted = [(optimizer, "step"), (optimizer, "param_groups")]
    if scheduler is not None:
        wanted.append((scheduler, "num_steps"))
    for chunk in model:
        wanted += [(chunk, name) for name in ("bucket_groups", "expert_parallel_bucket_groups", "buffers")]
        wanted += [(chunk, name) for name in ("expert_parallel_buffers", "dp_cp_group", "expt_dp_group")]
        wanted += [(group, "per_param_grad_ready_counts") for group in getattr(chunk, "bucket_groups", [])]
    for owner, name in wanted:
        if not hasattr(owner, name):
            yield f"this version of Megatron keeps its state elsewhere: {type(owner).__qualname__} has no {name!r}"
            return
    for what in versions.unknown(list(buckets.of(model))):
        yield f"this version of Megatron keeps something that FFTrainer does not know: {what}"
