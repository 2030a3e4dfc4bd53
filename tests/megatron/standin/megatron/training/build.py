"""Initialisation, model and optimizer, as megatron.training builds them for a small GPT."""

from __future__ import annotations

import inspect
import random
from typing import Any

import numpy as np
import torch
from megatron.core import mpu, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer
from megatron.core.optimizer.muon import get_megatron_muon_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.rerun_state_machine import RerunMode, initialize_rerun_state_machine
from megatron.core.transformer.module import Float16Module
from megatron.core.utils import get_model_config

from .async_utils import init_persistent_async_worker
from .global_vars import get_args, parse_args, set_global_variables


def initialize_megatron(extra_args_provider: Any = None, args_defaults: Any = None) -> None:
    args = parse_args(extra_args_provider)
    set_global_variables(args)
    if args.async_save:
        init_persistent_async_worker(args.rank, "forkserver")
    init_num_microbatches_calculator(
        rank=args.rank, global_batch_size=args.global_batch_size, micro_batch_size=args.micro_batch_size,
        data_parallel_size=args.data_parallel_size, decrease_batch_size_if_needed=False, **_ramp_up(args),
    )  # fmt: skip
    initialize_rerun_state_machine(mode=RerunMode.VALIDATE_RESULTS)
    own_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= args.world_size
    torch.distributed.init_process_group("nccl" if own_gpus else "gloo")
    mpu.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
        context_parallel_size=args.context_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
        create_gloo_process_groups=args.enable_gloo_process_groups,
    )
    seed = args.seed + 100 * mpu.get_pipeline_model_parallel_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    torch.distributed.barrier()


def _ramp_up(args: Any) -> dict[str, Any]:
    ramp = args.rampup_batch_size and [int(n) for n in args.rampup_batch_size]
    if "step_batch_size_schedule" not in inspect.signature(init_num_microbatches_calculator).parameters:
        return {"rampup_batch_size": ramp}
    if not ramp:  # megatron-core 0.18 and newer know steps only
        return {}
    start, increment, samples = ramp
    sizes = range(start, args.global_batch_size + 1, increment)
    every = samples // (len(sizes) - 1)
    return {"step_batch_size_schedule": " ".join(f"{number * every}:{size}" for number, size in enumerate(sizes))}


def get_model(model_provider: Any) -> list[Any]:
    args = get_args()
    chunks = []
    for stage in range(args.virtual_pipeline_model_parallel_size or 1):
        vp = None if args.virtual_pipeline_model_parallel_size is None else stage
        first = mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp)
        last = mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp)
        chunks.append(model_provider(first, last, vp_stage=vp).cuda(torch.cuda.current_device()))
    config = get_model_config(chunks[0])
    if args.bf16 or args.fp16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=args.use_distributed_optimizer,
        overlap_grad_reduce=args.overlap_grad_reduce,
        overlap_param_gather=args.overlap_param_gather,
        align_param_gather=args.align_param_gather,
        grad_reduce_in_fp32=args.bf16,
        bucket_size=args.ddp_bucket_size,
        num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
    )
    model = [
        DistributedDataParallel(config, ddp, chunk, disable_bucketing=index > 0) for index, chunk in enumerate(chunks)
    ]
    for chunk in model:
        chunk.broadcast_params()
    return model


def make_optimizer(model: list[Any]) -> tuple[Any, Any]:
    args = get_args()
    config = OptimizerConfig(
        optimizer=args.optimizer, lr=args.lr, min_lr=args.lr / 100, weight_decay=0.01, clip_grad=1.0, bf16=args.bf16,
        fp16=args.fp16, params_dtype=args.params_dtype, use_distributed_optimizer=args.use_distributed_optimizer,
        overlap_param_gather=args.overlap_param_gather, initial_loss_scale=2.0**16, loss_scale_window=5, hysteresis=1,
    )  # fmt: skip
    gloo = args.enable_gloo_process_groups
    if torch.distributed.get_backend() != "nccl":  # gloo gathers parts of one size only; this is its "reference test"
        LayerWiseDistributedOptimizer.allgather_params = LayerWiseDistributedOptimizer.broadcast_params
    if "muon" in args.optimizer:
        optimizer = get_megatron_muon_optimizer(
            config, model, use_gloo_process_groups=gloo, layer_wise_distributed_optimizer="dist" in args.optimizer
        )
    else:
        optimizer = get_megatron_optimizer(config, model, use_gloo_process_groups=gloo)
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=args.lr, min_lr=args.lr / 100, lr_warmup_steps=16, lr_decay_steps=400,
        lr_decay_style="cosine", start_wd=0.01, end_wd=0.1, wd_incr_steps=400, wd_incr_style="linear",
    )  # fmt: skip
    return optimizer, scheduler
