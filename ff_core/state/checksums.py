"""A number per tensor that another content makes another, most likely; computed where the tensor lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def sums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [number of tensors]: sums of the tensors' words, on the device of the first one. Nothing is waited for."""
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        return torch.stack([_sum(tensor.detach()).to(tensors[0].device) for tensor in tensors])


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    if flat.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    words = flat.view(_WORDS.get(flat.element_size(), torch.uint8))
    return words.sum(dtype=torch.int64)
