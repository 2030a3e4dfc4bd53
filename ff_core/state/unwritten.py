"""Tensors that were there when training began, and that nobody has written since: they need not be saved.

unwritten.begin(tensors)
unwritten.are(tensors)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch

_at_begin: dict[int, tuple[Callable[[], torch.Tensor | None], int]] = {}  # id -> reference, torch's count of writes


def version(tensor: torch.Tensor) -> int:
    """Another one after a write that torch counts."""
    return -1 if tensor.is_inference() else tensor._version


def begin(tensors: Iterable[torch.Tensor]) -> None:
    """Training begins with these."""
    _at_begin.update((id(tensor), (weakref.ref(tensor), version(tensor))) for tensor in tensors)


def are(tensors: Iterable[torch.Tensor]) -> bool:
    return all(map(_is, tensors))


def _is(tensor: torch.Tensor) -> bool:
    entry = _at_begin.get(id(tensor))
    return entry is not None and entry[0]() is tensor and entry[1] == version(tensor)
