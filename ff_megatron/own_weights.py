"""The weights that this rank's own optimizer step writes, and nothing else does.

Under DistributedOptimizer a rank updates a slice of each bucket, and gathers the others' slices: at the end of the
step, or with --overlap-param-gather during the next forward. A gather writes the same values into the own slice. So
contents can be compared, and torch's version counters cannot: these tensors have their own ones, which nobody moves.
"""

from __future__ import annotations

from typing import Any

import torch

from ff_core.contract.adapter import TensorSpec
from ff_megatron import optimizers, state_map


def own_weights(model: list[Any], optimizer: Any, specs: list[TensorSpec]) -> list[tuple[str, torch.Tensor]]:
    """(name, live tensor) of the parameters that this rank updates, flat, as far as it does, and of their masters.

    specs: of `state_map.declare`. Frozen parameters are among them: nobody may write them.
    """
    parts = [part for part in optimizers.parts(optimizer) if state_map.is_distributed(part)]
    found = []
    for number, chunk in enumerate(model):
        for name, p in chunk.named_parameters():
            own = _own(p, parts) if p.requires_grad and chunk.ddp_config.use_distributed_optimizer else slice(None)
            if own is not None:
                found.append((f"{number}.{name}", p.data.view(-1)[own]))
    known = {tensor.data_ptr() for _, tensor in found}
    masters = [(spec.name, spec.tensor.data) for spec in specs if spec.name.startswith(state_map.MASTERS)]
    return found + [(name, tensor) for name, tensor in masters if tensor.data_ptr() not in known]


def _own(p: torch.Tensor, parts: list[Any]) -> slice | None:
    for part in parts:
        if p in part.model_param_gbuf_map:
            own = part._get_model_param_range_map(p)["param"]
            return slice(own.start, own.end)
    return None  # all of it is another rank's
