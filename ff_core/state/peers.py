"""State that lies in no slot of a newcomer comes from a peer: broadcast in a few large messages.

Every rank of the group iterates `broadcast` to its end, in the same order; what to do with a value is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ff_core.contract.adapter import Held, TensorSpec

BUCKET_BYTES = 64 << 20


def redundant(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Those of `specs` that peers have too, and no slot of a newcomer need hold."""
    return [spec for spec in specs if spec.held in (Held.REPLICATED, Held.CONSTANT)]


def broadcast(specs: Sequence[TensorSpec], source: int, group: Any = None) -> Iterator[tuple[TensorSpec, torch.Tensor]]:
    """(spec, what global rank `source` holds of it) for each of `specs`, in the spec's shape and dtype.

    The values lie in a buffer that lives as long as they do. group: of torch.distributed, None for all ranks.
    """
    for bucket in _buckets([spec for spec in specs if spec.tensor.numel()]):
        flat = torch.cat([_bytes(spec.tensor) for spec in bucket])
        torch.distributed.broadcast(flat, src=source, group=group)
        offset = 0
        for spec in bucket:
            size = spec.tensor.numel() * spec.tensor.element_size()
            # cloned: a view of another dtype must begin at a multiple of its size
            yield spec, flat[offset : offset + size].clone().view(spec.tensor.dtype).view(spec.tensor.shape)
            offset += size


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _buckets(specs: list[TensorSpec]) -> Iterator[list[TensorSpec]]:
    bucket: list[TensorSpec] = []
    size = 0
    for spec in specs:
        wanted = spec.tensor.numel() * spec.tensor.element_size()
        # One device per message: they are joined into one buffer.
        if bucket and (size + wanted > BUCKET_BYTES or spec.tensor.device != bucket[0].tensor.device):
            yield bucket
            bucket, size = [], 0
        bucket.append(spec)
        size += wanted
    if bucket:
        yield bucket
