"""Which of the batches that a data loader handed out are the inputs of a call: known by memory, else by value.

A loop may fetch ahead (a prefetcher, a reader thread, Accelerate): then what was handed out last is not what is trained
on. A batch reaches engine(...) as it is, as views of it, or moved to another device or dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ff_core.state import batch as batches_
from ff_core.state.inputs import tolerance


def find(inputs: Any, candidates: Sequence[Any], *, by_value: bool) -> int | None:
    """Index of the newest of `candidates` (batches) in whose memory a tensor of `inputs` lies; else, if by_value, of
    the oldest that has the values of most of them (waits for the device). None if there is none."""
    given = [tensor for tensor in batches_.tensors(inputs) if tensor.numel()]
    for index in reversed(range(len(candidates))):
        memory = [_range(tensor) for tensor in batches_.tensors(candidates[index]) if tensor.numel()]
        if any(_within(_range(tensor), other) for tensor in given for other in memory):
            return index
    if not by_value:
        return None
    scores = [_alike(given, batches_.tensors(candidate)) for candidate in candidates]
    best = max(scores, default=0)
    return scores.index(best) if best else None


def nearly(now: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether a value that was computed again is what it was (waits for the device)."""
    return torch.allclose(now.detach(), before, rtol=tolerance(before), atol=0.0, equal_nan=True)


def same(inputs: Any, others: Any) -> bool:
    """Whether two inputs have the same tensors by value, in the same order (waits for the device)."""
    first, second = batches_.tensors(inputs), batches_.tensors(others)
    return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))


def _range(tensor: torch.Tensor) -> tuple[torch.device, int, int]:
    """Device, first and last address of what `tensor` may look at."""
    if tensor.layout is not torch.strided:
        return tensor.device, 0, -1
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return tensor.device, start, start + (last + 1) * tensor.element_size() - 1


def _within(a: tuple[torch.device, int, int], b: tuple[torch.device, int, int]) -> bool:
    return a[0] == b[0] and b[1] <= a[1] <= a[2] <= b[2]


def _alike(given: list[torch.Tensor], batch: list[torch.Tensor]) -> int:
    """How many of `given` have the values of a tensor of `batch`, converted."""
    return sum(any(_equal(tensor, other) for other in batch) for tensor in given)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.layout is not b.layout:
        return False
    if a.dtype != b.dtype or a.device != b.device:
        b = b.to(device=a.device, dtype=a.dtype)
    return torch.equal(a.detach(), b.detach())
