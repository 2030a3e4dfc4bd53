"""Small functions of megatron.training.training and its utils."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import mpu


def num_floating_point_operations(args: Any, batch_size: int) -> float:
    return 6.0 * batch_size * args.seq_length * args.hidden_size**2 * args.num_layers


def reduce_max_stat_across_model_parallel_group(stat: float) -> float:
    value = torch.tensor([stat], dtype=torch.float32, device="cuda")
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX, group=mpu.get_model_parallel_group())
    return value.item()


def should_disable_forward_pre_hook(args: Any) -> bool:
    return args.use_distributed_optimizer and args.overlap_param_gather


def enable_forward_pre_hook(model_chunks: Any) -> None:
    for model_chunk in model_chunks:
        model_chunk.enable_forward_pre_hook()


def disable_forward_pre_hook(model_chunks: Any, param_sync: bool = True) -> None:
    for model_chunk in model_chunks:
        model_chunk.disable_forward_pre_hook(param_sync=param_sync)
