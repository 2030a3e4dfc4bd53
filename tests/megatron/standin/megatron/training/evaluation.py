"""Evaluation, as megatron.training's."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine

from .global_vars import get_args, get_timers


def evaluate(forward_step_func: Any, data_iterator: Any, model: Any, config: Any) -> dict[str, Any]:
    args, timers = get_args(), get_timers()
    timers("evaluate", log_level=0).start(barrier=True)
    for model_module in model:
        model_module.eval()
    rerun_state_machine = get_rerun_state_machine()
    rerun_mode = rerun_state_machine.get_mode()
    rerun_state_machine.set_mode(RerunMode.DISABLED)
    total = torch.zeros(2)
    with torch.no_grad():
        for _ in range(args.eval_iters):
            config.timers = None
            losses = get_forward_backward_func()(
                forward_step_func=forward_step_func, data_iterator=data_iterator, model=model,
                num_microbatches=args.global_batch_size // (args.micro_batch_size * args.data_parallel_size),
                seq_length=args.seq_length, micro_batch_size=args.micro_batch_size, forward_only=True,
            )  # fmt: skip
            config.timers = get_timers()
            if mpu.is_pipeline_last_stage(ignore_virtual=True):
                value = torch.vstack([loss["lm loss"].view(-1) for loss in losses]).sum(dim=0)
                torch.distributed.all_reduce(value, group=mpu.get_data_parallel_group(with_context_parallel=True))
                total += value
            args.consumed_valid_samples += args.global_batch_size
    for model_module in model:
        model_module.train()
    timers("evaluate").stop()
    rerun_state_machine.set_mode(rerun_mode)
    return {"lm loss": total[0] / total[1]}
