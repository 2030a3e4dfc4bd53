"""Batches that can be handed out again: kept with what a loop's body might do to them in mind.

Bodies take dicts apart (`batch.pop("labels")`) and sometimes write into tensors. So the containers handed out are
copies around the same tensors, and writing into a tensor is noticed by its version counter.
"""

from __future__ import annotations

import copy
from typing import Any

import torch


def share(batch: Any) -> Any:
    """A copy of the containers (dicts, lists, tuples and copyable objects) around the same tensors."""
    if isinstance(batch, torch.Tensor):
        return batch
    if type(batch) is dict:
        return {key: share(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(share(value) for value in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(share(value) for value in batch))
    if isinstance(batch, (str, bytes, int, float, type(None))):
        return batch
    return copy.copy(batch)


def clone(batch: Any) -> Any:
    """`share`, with tensors copied too (memory: the batch once more)."""
    if isinstance(batch, torch.Tensor):
        return batch.clone()
    if type(batch) is dict:
        return {key: clone(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(clone(value) for value in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(clone(value) for value in batch))
    return copy.deepcopy(batch)


def clone_tensors(batch: Any) -> Any:
    """Lists, tuples and dicts copied with the tensors in them; everything else as it is (groups, streams, objects)."""
    if isinstance(batch, torch.Tensor):
        return batch.detach().clone()
    if type(batch) in (list, tuple):
        return type(batch)(clone_tensors(value) for value in batch)
    if type(batch) is dict:
        return {key: clone_tensors(value) for key, value in batch.items()}
    return batch


def tensors(batch: Any) -> list[torch.Tensor]:
    """The tensors inside `batch`, in a fixed order; inside an object, those of its attributes."""
    if hasattr(batch, "__dict__") and not isinstance(batch, (torch.Tensor, dict, list, tuple)):
        return [tensor for value in vars(batch).values() for tensor in contained(value)]
    if isinstance(batch, (list, tuple)):
        return [tensor for value in batch for tensor in tensors(value)]
    if isinstance(batch, dict):
        return [tensor for value in batch.values() for tensor in tensors(value)]
    return contained(batch)


def contained(batch: Any) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts, in a fixed order; objects are not looked into."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, dict):
        return [tensor for value in batch.values() for tensor in contained(value)]
    if isinstance(batch, (list, tuple)):
        return [tensor for value in batch for tensor in contained(value)]
    return []


def marks(batch: Any) -> tuple[int, ...]:
    """Version counters: equal to an earlier call's exactly if nobody wrote into the tensors in between."""
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors(batch))
