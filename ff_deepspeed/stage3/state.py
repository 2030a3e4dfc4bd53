"""The tensors of a rank under ZeRO-3: declarations for the razor.

| tensor                                   | held |
| ---                                      | --- |
| fp32 partition of each sub-group, moments | unique |
| partition of the weights (`ds_tensor`)   | derived: cast from the masters; in fp32 they are the masters |
| the same, with "weights_edited"          | unique |
| partition of a frozen parameter          | unique: nobody else has it, and a replacement may not be able to load it |

Nothing of the parameters is replicated: those that DeepSpeed keeps whole between steps ("persistent") are gathered
from the partitions again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.errors import UnsupportedError
from ff_deepspeed import moments
from ff_deepspeed.stage3 import layout

MASTERS = "master"
NOT_CAST = (
    "weights were written after deepspeed.initialize() and before training (deepspeed.zero.GatheredParameters with a "
    "modifier_rank): under ZeRO-3 DeepSpeed forgets that in its first step, because it keeps other masters. Write "
    'weights before initialize(), or set "weights_edited": true in the "ff_failover" block'
)


@contextmanager
def whole_groups(wrapper: Any, inner: torch.optim.Optimizer) -> Iterator[None]:
    """While this lasts, the groups of `inner` list its masters. DeepSpeed lists them only while it steps one.

    wrapper: DeepSpeed's optimizer.
    """
    for number, group in enumerate(inner.param_groups):
        ids = [
            sub_group
            for sub_group, owner in wrapper.sub_group_to_group_id.items()
            if owner == number and layout.stepped_by(wrapper, sub_group) is inner
        ]
        group["params"] = [wrapper.fp32_partitioned_groups_flat[i] for i in sorted(ids)]
    try:
        yield
    finally:
        for group in inner.param_groups:
            group["params"] = []  # what twin-flow's second optimizer was made with is never stepped


def declare(engine: Any, weights_edited: bool) -> list[TensorSpec]:
    """Parameters, masters and moments of `engine`; its moments exist.

    Raises UnsupportedError if weights are no casts of their masters, and weights_edited is false.
    """
    optimizer = engine.optimizer
    specs = []
    for number, master in enumerate(layout.masters(optimizer)):
        specs.append(TensorSpec(f"{MASTERS}.{number}", master.data, Held.UNIQUE))
        for name, tensor in moments.of(layout.stepped_by(optimizer, number)).tensors(master).items():  # type: ignore[arg-type]
            specs.append(TensorSpec(f"{name}.{number}", tensor, Held.UNIQUE))
    for number, flat, master in layout.derived_weights(optimizer):
        if weights_edited:
            specs.append(TensorSpec(f"weights.{number}", flat.data, Held.UNIQUE))
        elif torch.equal(flat, master.detach().to(flat.dtype).to(flat.device)):
            specs.append(TensorSpec(f"weights.{number}", flat.data, Held.DERIVED, source=MASTERS))
        else:
            raise UnsupportedError(NOT_CAST)
    trained = layout.trained(optimizer)
    for name, p in engine.module.named_parameters():
        if id(p) not in trained:
            specs.append(TensorSpec(f"frozen.{name}", p.ds_tensor.data, Held.UNIQUE))
    return specs


def same_values(engine: Any) -> AbstractContextManager[None]:
    """Around DeepSpeed's own saving of whole weights: it writes each partition anew, with the values that it has.

    torch's version counters do not show that, so that it is not taken for a script that writes weights.
    """
    partitions = tuple(p.ds_tensor for p in engine.module.parameters())
    kept: AbstractContextManager[None] = torch.autograd.grad_mode._unsafe_preserve_version_counter(partitions)
    return kept


def written_by_steps(
    optimizer: Any, parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of what only a step may write: this rank's partition of each of `parameters`, and the masters."""
    for name, p in parameters:
        yield name, p.ds_tensor  # type: ignore[attr-defined]
    for number, master in enumerate(layout.masters(optimizer)):
        yield f"{MASTERS}.{number}", master
