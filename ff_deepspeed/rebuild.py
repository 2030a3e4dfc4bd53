"""What is not copied comes back here: weights from the masters, frozen parameters and buffers from the peers.

Every rank calls these functions in the same order; the groups work again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ff_core.adapter import Held, TensorSpec

BUCKET_BYTES = 64 << 20


def weights_from_masters(engine: Any) -> None:
    """ZeRO-1 and 2: each rank casts its fp32 partition, all gather. A no-op where weights are copied themselves."""
    if hasattr(engine.optimizer, "update_lp_params"):
        engine.optimizer.update_lp_params()


def from_peers(specs: list[TensorSpec], source: int, newcomers: list[int], rank: int) -> dict[str, torch.Tensor]:
    """Broadcast REPLICATED and CONSTANT tensors of `specs` from global rank `source`.

    A newcomer takes REPLICATED tensors and frozen parameters in place; survivors keep theirs. Returns, in a newcomer,
    what arrived for the constant buffers: name of the spec -> tensor, for `Buffers.load` to decide; else {}.
    """
    sent = [spec for spec in specs if spec.held in (Held.REPLICATED, Held.CONSTANT) and spec.tensor.numel()]
    arrived: dict[str, torch.Tensor] = {}
    for bucket in _buckets(sent):
        flat = torch.cat([_bytes(spec.tensor) for spec in bucket])
        torch.distributed.broadcast(flat, src=source)
        if rank not in newcomers:
            continue
        offset = 0
        for spec in bucket:
            size = spec.tensor.numel() * spec.tensor.element_size()
            value = flat[offset : offset + size].clone().view(spec.tensor.dtype).view(spec.tensor.shape)
            offset += size
            if spec.name.startswith("buffer."):
                arrived[spec.name.removeprefix("buffer.")] = value
            else:
                spec.tensor.copy_(value)
    return arrived


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _buckets(specs: list[TensorSpec]) -> Iterator[list[TensorSpec]]:
    """Few large messages instead of many small ones; one device each."""
    bucket: list[TensorSpec] = []
    size = 0
    for spec in specs:
        bytes_ = spec.tensor.numel() * spec.tensor.element_size()
        if bucket and (size + bytes_ > BUCKET_BYTES or spec.tensor.device != bucket[0].tensor.device):
            yield bucket
            bucket, size = [], 0
        bucket.append(spec)
        size += bytes_
    if bucket:
        yield bucket
