"""Marks of a script's values: whether one was changed, and whether it is the same in another process."""

from __future__ import annotations

import sys
import weakref
import zlib
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from ff_core.state import frames, generators

PLAIN = frozenset({bool, int, float, str, type(None)})
HOLDERS = frozenset({list, tuple, deque, set, dict})
_WRITTEN = (torch.Tensor, torch.nn.Module)
_NO_OBJECTS = (*_WRITTEN, type, ModuleType, FunctionType, MethodType, partial)
_MOST_TENSORS = 64  # of one model or dict: an average writes into all of them
_SMALL = 4096  # elements of a tensor whose contents are compared
_LAST = 32  # entries of a list whose contents are compared
_SHOWN = 40  # characters of a value in a message
_listed: weakref.WeakKeyDictionary[torch.nn.Module, list[torch.Tensor]] = weakref.WeakKeyDictionary()


def is_of_interest(name: str, value: Any) -> bool:
    """Whether a variable of this name and value is looked at."""
    kind = type(value)
    if name.startswith("__"):
        return False
    return kind in PLAIN or kind in HOLDERS or isinstance(value, _WRITTEN) or generators.is_generator(value)


def is_users_object(value: Any) -> bool:
    """An object of a class that the script brought."""
    kind = type(value)
    if isinstance(value, _NO_OBJECTS) or type(getattr(value, "__dict__", None)) is not dict:
        return False
    module = sys.modules.get(kind.__module__)
    return module is not None and frames.is_users(getattr(module, "__file__", None) or "<none>", kind.__module__)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """`value` itself, those of a model, or those in a list or dict."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        listed = _listed.get(value)
        if listed is None:  # torch takes milliseconds for a large model
            listed = _listed[value] = _spread(list(chain(value.parameters(), value.buffers())))
        yield from listed
    elif type(value) in HOLDERS:
        items = value.values() if type(value) is dict else value
        yield from (item for item in islice(items, _MOST_TENSORS) if isinstance(item, torch.Tensor))


def _spread(tensors_of: list[torch.Tensor]) -> list[torch.Tensor]:
    """At most so many, from begin to end."""
    return tensors_of[:: -(-len(tensors_of) // _MOST_TENSORS) or 1]


def mark(value: Any) -> Any:
    """Another one when the value is another one, in this process."""
    kind = type(value)
    if kind in PLAIN:
        return repr(value)
    written = [(id(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors(value)]
    if written or isinstance(value, _WRITTEN):
        return written
    return text(value)


def same_tensors(one: Any, other: Any) -> bool:
    """Whether two marks are of the same tensors, and not of others under the same name."""
    return type(one) is list and type(other) is list and [i for i, _ in one] == [i for i, _ in other]


def text(value: Any) -> str | None:
    """Equal in another process exactly if the value is. None: not known."""
    kind = type(value)
    if kind in PLAIN:
        return repr(value)
    if generators.is_generator(value):
        return f"{generators.digest(value):08x}"
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or value.numel() > _SMALL or value.layout != torch.strided:
            return None
        return f"{value.dtype} {tuple(value.shape)} {zlib.crc32(repr(value.detach().tolist()).encode()):08x}"
    if kind not in HOLDERS or any(True for _ in tensors(value)):
        return None
    return f"{kind.__name__} {len(value)} {zlib.crc32(repr(_last(value)).encode()):08x}"


def _last(value: Any) -> list[Any]:
    """Plain values among the last items of a list or dict: enough to tell whether it goes on alike."""
    items: Any = value.items() if type(value) is dict else sorted(value, key=repr) if type(value) is set else value
    if type(value) is dict:
        return [pair for pair in islice(reversed(items), _LAST) if all(type(part) in PLAIN for part in pair)]
    return [item for item in islice(reversed(items), _LAST) if type(item) in PLAIN]


def shown(value: Any) -> str:
    """For a message."""
    if generators.is_generator(value):
        return "another state"
    if type(value) in HOLDERS:
        return f"{len(value)} entries"
    text = repr(value) if type(value) in PLAIN else type(value).__qualname__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
