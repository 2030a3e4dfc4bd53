"""Attributes of a library's object that are plain data: numbers, texts, small tensors, and containers of these.

A trainer or a callback, or a subclass of the user's, counts and collects in its attributes. Nobody has named them, so
all that can be encoded are saved; objects of other kinds (models, loaders, files) are left alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch

from ff_core.errors import UnsupportedError
from ff_core.state import codec

MOST_BYTES = 1 << 20
"""Of one attribute: more is data that the script holds there, or too much to be saved in every iteration."""

Attributes = dict[str, bytes]
"""Name -> encoded value."""


def save(obj: Any, left_out: Iterable[str] = ()) -> Attributes:
    """The plain attributes of `obj`, encoded: it may go on changing them. left_out: names of others."""
    without = set(left_out)
    found = {name: _encoded(value, name) for name, value in vars(obj).items() if name not in without}
    return {name: value for name, value in found.items() if value is not None}


def large(obj: Any, left_out: Iterable[str] = ()) -> list[str]:
    """Names of plain attributes with more than MOST_BYTES."""
    return [name for name, value in save(obj, left_out).items() if len(value) > MOST_BYTES]


def load(obj: Any, saved: Attributes) -> None:
    """Put save()'s result into another process's `obj`. Containers keep their classes and identity."""
    for name, value in saved.items():
        setattr(obj, name, _put(vars(obj).get(name), codec.decode(value)))


def _encoded(value: Any, name: str) -> bytes | None:
    try:
        return codec.encode(_stripped(value), name)
    except (UnsupportedError, RecursionError):
        return None


def _stripped(value: Any) -> Any:
    """Without the classes that `_put` finds in the other process."""
    if isinstance(value, Mapping):
        return {key: _stripped(each) for key, each in value.items()}
    if isinstance(value, deque) or type(value) is list:
        return [_stripped(each) for each in value]
    if type(value) is tuple:
        return tuple(_stripped(each) for each in value)
    return value


def _put(live: Any, saved: Any) -> Any:
    if isinstance(live, MutableMapping) and type(saved) is dict:
        for key in [key for key in live if key not in saved]:
            del live[key]
        for key, value in saved.items():
            live[key] = _put(live.get(key), value)
        return live
    if isinstance(live, deque) and type(saved) is list:
        live.clear()
        live.extend(saved)
        return live
    if type(live) is list and type(saved) is list:
        live[:] = saved
        return live
    if isinstance(live, torch.Tensor) and isinstance(saved, torch.Tensor):
        return saved.to(live.device)
    return saved
