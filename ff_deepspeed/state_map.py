"""Where a DeepSpeed engine keeps its tensors, and who else holds each of them: the declarations behind the razor.

| engine.optimizer (ZeRO stage)   | unique to the rank          | on every rank                  | derived      |
| ---                             | ---                         | ---                            | ---          |
| DeepSpeedZeroOptimizer (1, 2)   | fp32 partition, its moments |                                | flat weights |
| BF16_Optimizer (1)              | fp32 partition, its moments |                                | flat weights |
| DeepSpeedZeroOptimizer_Stage3   | see `ff_deepspeed.stage3.state`; frozen parameters too      |             |
| FP16_UnfusedOptimizer (0, bf16) |                             | fp32 masters, moments, weights |              |
| FP16_Optimizer (the same, fused)|                             | fp32 masters, moments, weights |              |
| the script's optimizer (0, fp32)|                             | weights, moments               |              |

Moments are whatever tensors the optimizer's state has (`ff_deepspeed.moments`). "On every rank" is meant of dense
parameters: of experts, and of stages of a pipeline, fewer ranks hold the same (`ff_deepspeed.redundancy`).

Frozen parameters and buffers never change and are the same everywhere; buffers that turn out to change in forward
travel with the scalars (`ff_core.state.buffers`). The bf16 weights of the FP16 wrappers are not derived: their dry
first step applies weight decay to the masters only, so at version 0 they are no cast of the masters.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.state.optimizer_tensors import trainable
from ff_deepspeed import moments
from ff_deepspeed.redundancy import DENSE, Redundancy, kind_of, kinds_of, kinds_of_buffers
from ff_deepspeed.stage3 import layout, state

MASTERS = state.MASTERS


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that computes steps, below DeepSpeed's wrapper.

    Not engine.basic_optimizer: ZeRO makes a new torch.optim.Adagrad.
    """
    wrapper = engine.optimizer
    inner: torch.optim.Optimizer = wrapper if wrapper is engine.basic_optimizer else wrapper.optimizer
    return inner


def inner_optimizers(engine: Any) -> list[torch.optim.Optimizer]:
    """All that compute steps below DeepSpeed's wrapper: two where a part of an offloaded optimizer is on the GPU."""
    if layout.is_stage3(engine.optimizer):
        return layout.inner_optimizers(engine.optimizer)
    return [inner_optimizer(engine)]


def whole_groups(engine: Any, inner: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Around whatever goes through the groups of one of `inner_optimizers`: under ZeRO-3 they are empty between steps.

    One after the other: two optimizers may share a group.
    """
    return state.whole_groups(engine.optimizer, inner) if layout.is_stage3(engine.optimizer) else nullcontext()


def partitions(optimizer: Any) -> list[torch.Tensor] | None:
    """This rank's fp32 master partition of each parameter group under ZeRO-1 and 2, else None."""
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return None


def flat_weights(optimizer: Any) -> list[torch.Tensor]:
    """The flat buffers whose views are the module's parameters under ZeRO-1 and 2."""
    for name in ("bit16_groups_flat", "bf16_groups_flat"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return []


def declare(engine: Any, changing_buffers: set[str], weights_edited: bool = False) -> list[TensorSpec]:
    """All persistent tensors of `engine`, whose moments exist (`moments.create`).

    changing_buffers: names of module buffers that are saved with the scalars and hence left out here.
    weights_edited: low-precision weights may be no casts of their masters, so they are copied themselves.
    """
    redundancy = Redundancy(engine)
    optimizer = engine.optimizer
    masters = partitions(optimizer)
    if layout.is_stage3(optimizer):
        return state.declare(engine, weights_edited) + _buffers(engine, changing_buffers, redundancy)
    if masters is not None:
        specs = _partitioned(engine, masters, redundancy if weights_edited else None)
    elif hasattr(optimizer, "fp32_groups"):
        specs = _unfused(engine, redundancy)
    elif hasattr(optimizer, "fp32_groups_flat"):
        specs = _fused(engine, redundancy)
    else:
        specs = _plain(engine, redundancy)
    return specs + _constants(engine, changing_buffers, redundancy)


def _partitioned(engine: Any, masters: list[torch.Tensor], copied: Redundancy | None) -> list[TensorSpec]:
    """copied: weights are copied themselves, and this says who else has them."""
    inner = inner_optimizer(engine)
    specs = []
    for group, partition in enumerate(masters):
        specs.append(TensorSpec(f"{MASTERS}.{group}", partition.data, Held.UNIQUE))
        for name, tensor in moments.of(inner).tensors(partition).items():  # type: ignore[arg-type]
            specs.append(TensorSpec(f"{name}.{group}", tensor, Held.UNIQUE))
    for group, flat in enumerate(flat_weights(engine.optimizer)):
        if copied is None:
            specs.append(TensorSpec(f"weights.{group}", flat.data, Held.DERIVED, source=MASTERS))
        else:
            kinds = kinds_of(_groups(engine.optimizer)[group])
            specs.append(TensorSpec(f"weights.{group}", flat.data, *copied.held(kinds, Held.REPLICATED)))
    return specs


def _unfused(engine: Any, redundancy: Redundancy) -> list[TensorSpec]:
    inner = inner_optimizer(engine)
    names = parameter_names(engine)
    specs = []
    for group, (masters, weights) in enumerate(
        zip(engine.optimizer.fp32_groups, engine.optimizer.fp16_groups, strict=True)
    ):
        for index, (master, weight) in enumerate(zip(masters, weights, strict=True)):
            name = names.get(weight, f"extra.{group}.{index}")
            held = redundancy.held({kind_of(weight)}, Held.REPLICATED)
            specs.append(TensorSpec(f"{MASTERS}.{name}", master.data, *held))
            specs.append(TensorSpec(f"weight.{name}", weight.data, *held))
            for moment, tensor in moments.of(inner).tensors(master).items():
                specs.append(TensorSpec(f"{moment}.{name}", tensor, *held))
    return specs


def _fused(engine: Any, redundancy: Redundancy) -> list[TensorSpec]:
    inner = inner_optimizer(engine)
    specs = []
    flat = zip(engine.optimizer.fp32_groups_flat, engine.optimizer.fp16_groups_flat, strict=True)
    for group, (master, weights) in enumerate(flat):
        held = redundancy.held(kinds_of(_groups(engine.optimizer)[group]), Held.REPLICATED)
        specs.append(TensorSpec(f"{MASTERS}.{group}", master.data, *held))
        specs.append(TensorSpec(f"weights.{group}", weights.data, *held))
        for name, tensor in moments.of(inner).tensors(master).items():
            specs.append(TensorSpec(f"{name}.{group}", tensor, *held))
    return specs


def _plain(engine: Any, redundancy: Redundancy) -> list[TensorSpec]:
    inner = inner_optimizer(engine)
    names = parameter_names(engine)
    specs = []
    for index, p in enumerate(trainable(inner)):
        name = names.get(p, f"extra.{index}")
        held = redundancy.held({kind_of(p)}, Held.REPLICATED)
        specs.append(TensorSpec(f"weight.{name}", p.data, *held))
        for moment, tensor in moments.of(inner).tensors(p).items():
            specs.append(TensorSpec(f"{moment}.{name}", tensor, *held))
    return specs


def _constants(engine: Any, changing_buffers: set[str], redundancy: Redundancy) -> list[TensorSpec]:
    updated = {id(p) for p in updated_parameters(engine)}
    specs = [
        TensorSpec(f"frozen.{name}", p.data, *redundancy.held({kind_of(p)}, Held.CONSTANT))
        for name, p in engine.module.named_parameters()
        if id(p) not in updated
    ]
    return specs + _buffers(engine, changing_buffers, redundancy)


def _buffers(engine: Any, changing_buffers: set[str], redundancy: Redundancy) -> list[TensorSpec]:
    kinds = kinds_of_buffers(engine.module)
    return [
        TensorSpec(f"buffer.{name}", buffer, *redundancy.held({kinds.get(id(buffer), DENSE)}, Held.CONSTANT))
        for name, buffer in engine.module.named_buffers()
        if name not in changing_buffers
    ]


def parameter_names(engine: Any) -> dict[torch.nn.Parameter, str]:
    return {p: name for name, p in engine.module.named_parameters()}


def updated_parameters(engine: Any) -> list[torch.nn.Parameter]:
    """The module's (or the caller's own) parameters that a step changes, in the optimizer's order."""
    groups = _groups(engine.optimizer)
    return [p for group in groups for p in group] if groups else trainable(inner_optimizer(engine))


def _groups(optimizer: Any) -> list[list[torch.nn.Parameter]]:
    """The module's parameters in each group of DeepSpeed's wrapper; empty if there is no wrapper."""
    for name in ("bit16_groups", "bf16_groups", "fp16_groups"):
        groups = getattr(optimizer, name, None)
        if groups is not None:
            return list(groups)
    return []
