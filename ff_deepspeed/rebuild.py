"""What is not copied comes back here: weights from the masters, frozen parameters and buffers from the peers.

Every rank calls these functions in the same order; the groups work again.
"""

from __future__ import annotations

from typing import Any

import torch

from ff_core.adapter import TensorSpec
from ff_core.state import peers


def weights_from_masters(engine: Any) -> None:
    """ZeRO-1 and 2: each rank casts its fp32 partition, all gather. A no-op where weights are copied themselves."""
    if hasattr(engine.optimizer, "update_lp_params"):
        engine.optimizer.update_lp_params()


def from_peers(specs: list[TensorSpec], source: int, newcomers: list[int], rank: int) -> dict[str, torch.Tensor]:
    """Broadcast REPLICATED and CONSTANT tensors of `specs` from global rank `source`.

    A newcomer takes REPLICATED tensors and frozen parameters in place; survivors keep theirs. Returns, in a newcomer,
    what arrived for the constant buffers: name of the spec -> tensor, for `Buffers.load` to decide; else {}.
    """
    arrived: dict[str, torch.Tensor] = {}
    for spec, value in peers.broadcast(peers.redundant(specs), source):
        if rank not in newcomers:
            continue
        if spec.name.startswith("buffer."):
            arrived[spec.name.removeprefix("buffer.")] = value
        else:
            spec.tensor.copy_(value)
    return arrived
