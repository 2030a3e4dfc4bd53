"""Conversions of large tensors to another floating-point type, on several cores: each element by itself.

A framework that trains in bfloat16 converts the model's weights on the host first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import torch

from ff_core.worker.pieces import PIECE, Method, finish, on_host, replaced

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Methods that name the type, which `to()` is given.
_NAMED = {"float": torch.float32, "bfloat16": torch.bfloat16, "half": torch.float16}


@contextmanager
def on(pool: Executor, pieces: int) -> Iterator[None]:
    """Large conversions are cut into so many pieces at most, which `pool` works on."""
    named = {name: functools.partial(_named, dtype=dtype, pool=pool, pieces=pieces) for name, dtype in _NAMED.items()}
    with replaced({"to": functools.partial(_to, pool=pool, pieces=pieces), **named}):
        yield


def _named(original: Method, dtype: torch.dtype, pool: Executor, pieces: int) -> Method:
    def converted(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not _is_for_us(self, dtype):
            return original(self, *args, **kwargs)
        return _converted(self, dtype, pool, pieces)

    return converted


def _to(original: Method, pool: Executor, pieces: int) -> Method:
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        dtype = _asked(args, kwargs)
        if dtype is None or not _is_for_us(self, dtype):
            return original(self, *args, **kwargs)
        made = _converted(self, dtype, pool, pieces)
        return original(made, *args, **kwargs)  # to the device that it names, if it names one

    return to


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The type that `to()` is given; None: none, or in a way that only torch itself can tell."""
    if args and isinstance(args[0], torch.Tensor):
        return None
    try:
        _, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    except (TypeError, RuntimeError):  # another way to call it, or a wrong one: torch says so
        return None
    return dtype if memory_format is None else None


def _is_for_us(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return dtype in _TYPES and tensor.dtype in _TYPES and dtype != tensor.dtype and on_host(tensor)


def _converted(tensor: torch.Tensor, dtype: torch.dtype, pool: Executor, pieces: int) -> torch.Tensor:
    """tensor: contiguous; of any shape."""
    with torch.no_grad():
        made = torch.empty_like(tensor.detach(), dtype=dtype)
        to, source = made.view(-1), tensor.detach().view(-1)
        size = max(PIECE, -(-source.numel() // pieces))

    def convert(start: int) -> None:
        with torch.no_grad():
            to[start : start + size].copy_(source[start : start + size])

    started = [pool.submit(convert, start) for start in range(0, source.numel(), size)]
    finish(started)
    return made
