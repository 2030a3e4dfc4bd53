"""Where a Megatron optimizer keeps its tensors, and who else holds each: the declarations behind the razor.

| part of the optimizer             | unique to the rank                              | derived                      |
| ---                               | ---                                             | ---                          |
| DistributedOptimizer              | its fragments: masters, moments, steps          | weights: cast and all-gather |
| the same, precision-aware         | its fragments: weights, masters, moments, scales | weights: all-gather         |
| Float16OptimizerWithFloat16Params | masters, moments, steps, if nobody has them too | weights: cast of the masters |
| FP32Optimizer                     | weights, moments, steps, if nobody has them too |                              |
| these two in a layer-wise one     | the same of the parameters that it updates      | weights: cast and all-gather |

Frozen parameters are CONSTANT: data-parallel ranks have them too; without any, they are copied as unique ones are.
Without DistributedOptimizer the data-parallel ranks hold the same: then the state is REPLICATED, and copied to the own
slot only. A fragment is the part of one parameter that a rank updates; under DistributedOptimizer a rank has a slice
of each bucket, so fragments begin and end anywhere in a parameter. Fragments of fp32 weights are views of DDP's buffer,
as those of all weights are that a precision-aware optimizer updates.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import torch

from ff_core.contract.adapter import Held, TensorSpec
from ff_megatron import optimizers
from ff_megatron.redundancy import Redundancy, is_expert, of_experts

MASTERS = "master"


def is_distributed(part: Any) -> bool:
    """Whether `part` shards its state over data-parallel ranks."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    return isinstance(part, DistributedOptimizer)


def is_layer_wise(optimizer: Any) -> bool:
    """Whether `optimizer` gives each data-parallel rank whole parameters to update (--optimizer dist_muon)."""
    from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer

    return isinstance(optimizer, LayerWiseDistributedOptimizer)


def declare(
    model: list[Any], optimizer: Any, numbers: list[dict[str, torch.Tensor]], redundancy: Redundancy
) -> list[TensorSpec]:
    """All persistent tensors of `optimizer` over the DDP chunks `model`. numbers: of `optimizers.prepare`, per part."""
    specs: list[TensorSpec] = []
    addresses: list[int] = []
    for number, part in enumerate(optimizers.parts(optimizer)):
        held, over = (Held.UNIQUE, "") if is_layer_wise(optimizer) else _held(redundancy, part)
        inner = part.optimizer
        for group, index, p in optimizers.parameters(part):
            name, master = f"{number}.{group}.{index}", p.data
            addresses.append(master.data_ptr())
            specs.append(TensorSpec(f"{MASTERS}.{name}", master, held, over))
            for kept, tensor in optimizers.tensors(inner, p).items():
                specs.append(TensorSpec(f"{kept}.{name}", tensor, held, over))
        for kind, tensor in numbers[number].items():
            specs.append(TensorSpec(f"{kind}.{number}", tensor, held, over))
    return specs + _weights(model, sorted(addresses)) + _frozen(model, redundancy)


def _held(redundancy: Redundancy, part: Any) -> tuple[Held, str]:
    return (Held.UNIQUE, "") if is_distributed(part) else redundancy.held(of_experts(part), Held.REPLICATED)


def _weights(model: list[Any], copied: list[int]) -> list[TensorSpec]:
    """The weights, as DDP's buffers or as parameters. copied: sorted addresses of what is itself copied: left out."""
    specs = []
    for number, chunk in enumerate(model):
        for index, buffer in enumerate([*chunk.buffers, *chunk.expert_parallel_buffers]):
            if buffer.param_data is not None:
                if not _any_within(copied, buffer.param_data):
                    name = f"weights.{number}.{index}"
                    specs.append(TensorSpec(name, buffer.param_data, Held.DERIVED, source=MASTERS))
                continue
            for place, p in enumerate(buffer.params):
                if not _any_within(copied, p.data):
                    name = f"weights.{number}.{index}.{place}"
                    specs.append(TensorSpec(name, p.data, Held.DERIVED, source=MASTERS))
    return specs


def _any_within(addresses: list[int], tensor: torch.Tensor) -> bool:
    begin = tensor.data_ptr()
    place = bisect_left(addresses, begin)
    return place < len(addresses) and addresses[place] < begin + tensor.numel() * tensor.element_size()


def _frozen(model: list[Any], redundancy: Redundancy) -> list[TensorSpec]:
    return [
        TensorSpec(f"frozen.{number}.{name}", p.data, *redundancy.held(is_expert(p), Held.CONSTANT))
        for number, chunk in enumerate(model)
        for name, p in chunk.named_parameters()
        if not p.requires_grad
    ]
