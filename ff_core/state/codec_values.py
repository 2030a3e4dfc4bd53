"""Values of NumPy and torch from the parts that `ff_core.state.codec` has of them. Raise ValueError on wrong parts.

Neither library is imported before such a value is asked for.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def bytes_of(dense: torch.Tensor) -> bytes:
    """ctypes reads the bytes of any dtype, bfloat16 and float8 included, and needs no NumPy."""
    return ctypes.string_at(dense.data_ptr(), dense.numel() * dense.element_size())


def numpy_array(parts: list[Any]) -> Any:
    import numpy as np

    name, shape, data = parts
    return np.frombuffer(data, dtype=np.dtype(name)).reshape(shape).copy()


def numpy_scalar(parts: list[Any]) -> Any:
    import numpy as np

    name, data = parts
    return np.frombuffer(data, dtype=np.dtype(name))[0]


def dtype(parts: list[Any]) -> torch.dtype:
    import torch

    (name,) = parts
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch.{name} is no dtype")
    return found


def tensor(parts: list[Any]) -> torch.Tensor:
    import torch

    name, shape, data = parts
    made = torch.empty(shape, dtype=dtype([name]))
    if made.numel() * made.element_size() != len(data):
        raise ValueError(f"{len(data)} bytes for a tensor of shape {shape} and dtype {name}")
    ctypes.memmove(made.data_ptr(), data, len(data))
    return made


def device(parts: list[Any]) -> torch.device:
    import torch

    return torch.device(*parts)


def size(parts: list[Any]) -> torch.Size:
    import torch

    return torch.Size(parts)
