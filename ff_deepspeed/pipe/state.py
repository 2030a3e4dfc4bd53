"""What a PipelineEngine keeps beside other engines, who else holds it, and what of it cannot be protected.

| attribute | what it is | after a failure |
| --- | --- | --- |
| pipe_buffers, num_pipe_buffers | micro-batches, activations and graphs under way | emptied |
| pipe_recv_buf, grad_layer, _grad_layer_buf, meta_buffer, first_output_send, pipe_partition_*_meta_cache, grad_partition_grad_layer_meta_cache | shapes agreed with the neighbours | forgotten on every rank: a replacement has agreed on none |
| loss, total_loss, total_additional_losses, fwd_outputs, outputs | sums of the running iteration | emptied |
| _force_grad_boundary, eval_return_logits | switches within a call | off |
| agg_train_loss, agg_additional_losses, dp_group_loss | result of the last train_batch() | saved, put back |
| micro_batches | gradient_accumulation_steps, once more | put back with it |
| module.micro_offset | seeds layers with seed_layers=True | saved, as all plain attributes of modules |
| data_iterator | what train_batch() takes micro-batches from | the loop's business |
| buffers of activation checkpointing (of the process) | pieces of activations, when contiguous or partitioned | emptied |

What is not listed is the same from the engine's construction on. Nothing here calls a collective.
"""  # noqa: E501

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

#: Read or written here, or by DeepSpeed's own reset_activation_shape(). A version without one of them is refused.
ATTRIBUTES = (
    "pipe_buffers", "num_pipe_buffers", "pipe_recv_buf", "grad_layer", "_grad_layer_buf", "meta_buffer",
    "first_output_send", "pipe_partition_input_meta_cache", "pipe_partition_output_meta_cache",
    "pipe_partition_grad_meta_cache", "grad_partition_grad_layer_meta_cache", "loss", "total_loss",
    "total_additional_losses", "outputs", "_force_grad_boundary", "eval_return_logits", "agg_train_loss",
    "agg_additional_losses", "dp_group_loss", "micro_batches", "data_iterator", "batch_fn", "grid",
)  # fmt: skip
_RESULTS = ("agg_train_loss", "agg_additional_losses", "dp_group_loss")


def is_pipeline(engine: Any) -> bool:
    """Whether `engine` is a PipelineEngine."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    return isinstance(engine, PipelineEngine)


def group_of(engine: Any) -> Any:
    """The ProcessGroup of the ranks that hold the same stage."""
    return engine.mpu.get_data_parallel_group()


def config_obstacles(config: Any) -> Iterator[str]:
    """What of a DeepSpeedConfig stands in the way of a pipeline alone, a sentence each."""
    if config.float16_config.enabled:
        yield "fp16.enabled with a PipelineModule is not supported yet; bf16 is"
    section = config.zero_config.offload_optimizer
    if section is not None and str(getattr(section.device, "value", section.device)) != "none":
        yield "zero_optimization.offload_optimizer with a PipelineModule is not supported yet; remove it"


def obstacles(engine: Any) -> Iterator[str]:
    """What of a complete PipelineEngine cannot be protected, a sentence each."""
    import deepspeed

    lacking = [name for name in ATTRIBUTES if name not in vars(engine)]
    if lacking or not hasattr(engine, "reset_activation_shape"):
        yield f"DeepSpeed {deepspeed.__version__}'s PipelineEngine has no {', '.join(lacking)}: install 0.19.8"
        return
    if engine.grid.get_slice_parallel_world_size() > 1:
        yield (
            'the pipeline\'s topology has a "model" axis: tensor parallelism within stages is not supported yet; '
            "PipelineModule(num_stages=...) is"
        )
    if engine.has_moe_layers:
        yield "a PipelineModule with MoE layers is not supported yet: build the model without PipelineModule"


def reset(engine: Any) -> None:
    """Forget a half-done iteration, and what was agreed with the neighbouring stages."""
    from deepspeed.runtime.activation_checkpointing import checkpointing

    for slots in engine.pipe_buffers.values():
        slots.clear()
    engine.num_pipe_buffers = 0
    engine.reset_activation_shape()
    engine.loss = torch.tensor(0.0, device=engine.device)
    engine.total_loss = engine.total_additional_losses = engine.outputs = None
    engine.fwd_outputs = []
    engine._force_grad_boundary = engine.eval_return_logits = False
    engine.log_batch_step_id = -1
    checkpointing.reset()


def save(engine: Any) -> dict[str, Any]:
    """Results of the last train_batch(), for the scalars of a version: name -> tensor, (name, tensor) pairs or None."""
    saved: dict[str, Any] = {}
    for name in _RESULTS:
        value = getattr(engine, name)
        saved[name] = list(map(list, value.items())) if isinstance(value, dict) else value
    return saved


def load(engine: Any, saved: dict[str, Any]) -> None:
    """Put `save()` back."""
    for name, value in saved.items():
        if isinstance(value, list):
            value = OrderedDict((key, each.to(engine.device)) for key, each in value)
        setattr(engine, name, value.to(engine.device) if torch.is_tensor(value) else value)
