"""What cannot be protected yet: refused when the engine is made, with what works instead.

Half protection would be worse than none: a job that believes itself protected and then continues with mixed state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ff_core.errors import UnsupportedError
from ff_deepspeed import moments, versions
from ff_deepspeed.pipe import state as pipe
from ff_deepspeed.state_map import inner_optimizers, whole_groups

WORKS = (
    "FFTrainer protects DeepSpeed engines with ZeRO stage 0, 1, 2 or 3, fp32 or bf16, "
    "any optimizer that keeps what it remembers in its `state`; data, sequence, tensor and expert parallelism, and "
    "DeepSpeed's pipelines"
)
HINT = 'Use that, or set "ff_failover": {"enabled": false} to train unprotected.'


def check_config(config: Any, kind: type, model: Any, mpu: Any, optimizer: Any = None) -> None:
    """Before an engine of class `kind` is built. config: a DeepSpeedConfig. optimizer: given to initialize().

    Raises UnsupportedError listing every obstacle, or naming a version of DeepSpeed that is too old.
    """
    versions.check()
    _refuse([*_obstacles(config, kind, model, mpu), *_optimizer_obstacles(config, optimizer)])


def check_engine(engine: Any) -> None:
    """After the engine is built: its optimizer and its groups. Raises UnsupportedError listing every obstacle."""
    _refuse(list(engine_obstacles(engine)))


def _refuse(obstacles: list[str]) -> None:
    if obstacles:
        raise UnsupportedError(f"this job cannot be protected: {'; '.join(obstacles)}. {WORKS}. {HINT}")


def _obstacles(config: Any, kind: type, model: Any, mpu: Any) -> Iterator[str]:
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.hybrid_engine import DeepSpeedHybridEngine
    from deepspeed.runtime.pipe.engine import PipelineEngine

    zero = config.zero_config
    if zero.stage == 3:
        yield from _stage3_obstacles(zero)
    yield from versions.obstacles_in(config._param_dict)
    if isinstance(model, PipelineModule):
        yield from pipe.config_obstacles(config)
    elif mpu is not None:
        yield from _mpu_obstacles(mpu)
    for name in ("offload_optimizer", "offload_param"):
        yield from _offload_obstacles(name, getattr(zero, name, None), int(zero.stage))
    if kind not in (DeepSpeedEngine, PipelineEngine) and not issubclass(kind, DeepSpeedHybridEngine):
        yield f"the engine is a {kind.__module__}.{kind.__qualname__}, a class of its own"
    if getattr(zero, "zenflow", None) is not None:
        yield "zero_optimization.zenflow: ZenFlow is not supported"
    if config.hybrid_engine.enabled:
        yield "hybrid_engine: the hybrid engine is not supported"
    if config.torch_autocast_enabled and config.torch_autocast_dtype == torch.float16:
        yield "torch_autocast with float16 (a gradient scaler) is not supported; bfloat16 is"
    if config.data_efficiency_enabled:
        yield "data_efficiency: curriculum sampling and random-LTD are not supported"
    if not getattr(config, "managed_gradient_accumulation", True):  # since 0.19
        yield "managed_gradient_accumulation = false is not supported"
    if getattr(getattr(config, "expert_parallel_config", None), "enabled", False):  # since 0.19
        yield (
            "expert_parallel.enabled = true: experts that DeepSpeed makes of a model's (AutoEP) are not supported; "
            "deepspeed.moe.layer.MoE in the model is"
        )
    if config.compile_config.deepcompile:
        yield "compile.deepcompile is not supported"
    master_dtype = ("fp16_master_weights_and_grads", "bf16_master_weights_and_grads", "bf16_optimizer_states")
    for section in (config.float16_config, config.bfloat16_config):
        for name in master_dtype:
            if getattr(section, name, False):
                yield f"{name}: masters in a low precision are not supported"


def _mpu_obstacles(mpu: Any) -> Iterator[str]:
    """mpu: of the script, where the model is no PipelineModule."""
    from deepspeed.utils.bwc import bwc_pipeline_parallel_world_size

    if bwc_pipeline_parallel_world_size(mpu) > 1:
        yield (
            "initialize(mpu=...) with pipeline stages: the script exchanges activations itself. PipelineModule is "
            "supported, and an mpu for tensor or sequence parallelism"
        )


def _offload_obstacles(name: str, section: Any, stage: int) -> Iterator[str]:
    """section: the part `name` of "zero_optimization", None if there is none."""
    device = "none" if section is None else str(getattr(section.device, "value", section.device))
    if device == "nvme":
        yield f'zero_optimization.{name}.device = "nvme" is not supported: state on a disk is not copied; "cpu" is'
    elif device != "none" and stage < 3 and name == "offload_param":
        yield f"zero_optimization.offload_param has no effect with stage = {stage}: DeepSpeed leaves it out; remove it"
    elif device != "none" and getattr(section, "super_offload", False):
        yield (
            f"zero_optimization.{name}.super_offload = true is not supported: the optimizer's state is stepped in a "
            "process of its own; false is"
        )


def _stage3_obstacles(zero: Any) -> Iterator[str]:
    """What of ZeRO-3 keeps parameters in further places."""
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        if getattr(zero, name):
            yield f"zero_optimization.{name} = true is not supported; false is"


def _optimizer_obstacles(config: Any, given: Any) -> Iterator[str]:
    """The optimizer that DeepSpeed would make of the configuration, where it is known already to be none of ours."""
    name = config.optimizer_name
    if given is None and name == "muon":
        yield (
            f'"optimizer": {{"type": "{_written(config, name)}"}} keeps momentum that changes during backward, and '
            'steps another optimizer. Write "type": "AdamW" with "torch_adam": true among its "params"'
        )


def _written(config: Any, name: str) -> str:
    """The type as it stands in the user's file: DeepSpeed makes small letters of it."""
    section = config._param_dict.get("optimizer") or {}
    return str(section.get("type", name))


def engine_obstacles(engine: Any) -> Iterator[str]:
    """What of an engine that is complete cannot be protected, a sentence each."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    moved = list(versions.words(engine))
    if moved:
        yield from moved
        return
    for inner in inner_optimizers(engine):
        with whole_groups(engine, inner):
            yield from moments.words(inner, moments.examine(inner))
    wrappers = (
        DeepSpeedZeroOptimizer,
        DeepSpeedZeroOptimizer_Stage3,
        BF16_Optimizer,
        FP16_UnfusedOptimizer,
        FP16_Optimizer,
    )
    if engine.optimizer is not engine.basic_optimizer and type(engine.optimizer) not in wrappers:
        yield f"DeepSpeed wrapped the optimizer in a {type(engine.optimizer).__qualname__}"
    if pipe.is_pipeline(engine):
        yield from pipe.obstacles(engine)
    unreduced = [name for name, p in engine.module.named_parameters() if p.is_meta]
    if unreduced:
        yield f"parameters on the meta device: {', '.join(unreduced[:3])}"
