"""Where a Megatron optimizer keeps its tensors, and who else holds each: the declarations behind the razor.

| part of the optimizer             | unique to the rank                        | derived                      |
| ---                               | ---                                       | ---                          |
| DistributedOptimizer              | its fragments: masters, moments, steps    | weights: cast and all-gather |
| Float16OptimizerWithFloat16Params | masters, moments, steps, if nobody has them too | weights: cast of the masters |
| FP32Optimizer                     | weights, moments, steps, if nobody has them too |                        |

Frozen parameters are CONSTANT: data-parallel ranks have them too; without any, they are copied as unique ones are.
Without DistributedOptimizer the data-parallel ranks hold the same: then the state is REPLICATED, and copied to the own
slot only. A fragment is the part of one parameter that a rank updates; under DistributedOptimizer a rank has a slice
of each bucket, so fragments begin and end anywhere in a parameter. Fragments of fp32 weights are views of DDP's buffer.
"""

from __future__ import annotations

from typing import Any

import torch

from ff_core.adapter import Held, TensorSpec
from ff_megatron import optimizers

MASTERS = "master"


def is_distributed(part: Any) -> bool:
    """Whether `part` shards its state over data-parallel ranks."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    return isinstance(part, DistributedOptimizer)


def declare(model: list[Any], optimizer: Any, steps: list[torch.Tensor | None]) -> list[TensorSpec]:
    """All persistent tensors of `optimizer` over the DDP chunks `model`; `steps`: of `optimizers.prepare`, per part."""
    specs: list[TensorSpec] = []
    for number, part in enumerate(optimizers.parts(optimizer)):
        held, over = _held(model, part)
        inner = part.optimizer
        for group, index, p in optimizers.parameters(part):
            name, state = f"{number}.{group}.{index}", inner.state[p]
            specs.append(TensorSpec(f"{MASTERS}.{name}", p.data, held, over))
            for moment in optimizers.MOMENTS:
                specs.append(TensorSpec(f"{moment}.{name}", state[moment], held, over))
        counted = steps[number]
        if counted is not None:
            specs.append(TensorSpec(f"step.{number}", counted, held, over))
    return specs + _weights(model, {_place(spec.tensor) for spec in specs}) + _frozen(model)


def _held(model: list[Any], part: Any) -> tuple[Held, str]:
    if is_distributed(part):
        return Held.UNIQUE, ""
    size = model[0].dp_cp_group.size()
    return (Held.REPLICATED, f"data-parallel, {size} ranks") if size > 1 else (Held.UNIQUE, "")


def _weights(model: list[Any], copied: set[int]) -> list[TensorSpec]:
    """The weights, as DDP's buffers or as parameters; those that are themselves copied (fp32) are left out."""
    specs = []
    for number, chunk in enumerate(model):
        for index, buffer in enumerate([*chunk.buffers, *chunk.expert_parallel_buffers]):
            if buffer.param_data is not None and buffer.param_dtype != torch.float32:
                name = f"weights.{number}.{index}"
                specs.append(TensorSpec(name, buffer.param_data, Held.DERIVED, source=MASTERS))
            elif buffer.param_data is None:
                for place, p in enumerate(buffer.params):
                    if _place(p.data) not in copied:
                        name = f"weights.{number}.{index}.{place}"
                        specs.append(TensorSpec(name, p.data, Held.DERIVED, source=MASTERS))
    return specs


def _frozen(model: list[Any]) -> list[TensorSpec]:
    size = model[0].dp_cp_group.size()
    held = Held.CONSTANT if size > 1 else Held.UNIQUE
    return [
        TensorSpec(f"frozen.{number}.{name}", p.data, held, f"data-parallel, {size} ranks")
        for number, chunk in enumerate(model)
        for name, p in chunk.named_parameters()
        if not p.requires_grad
    ]


def _place(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()
