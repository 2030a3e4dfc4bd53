"""Marks of a script's values: whether one was changed, and whether it is the same in another process."""

from __future__ import annotations

import sys
import weakref
import zlib
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from types import FunctionType, GeneratorType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch

from ff_core.state import frames, generators
from ff_core.state.fingerprint import Fingerprint

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

PLAIN = frozenset({bool, int, float, str, type(None)})
SCALARS = frozenset({complex, bytes, torch.dtype, torch.device, torch.Size})
HOLDERS = frozenset({list, tuple, deque, set, frozenset, dict, OrderedDict, Counter, defaultdict})
ITERATORS = frozenset({count, type(iter([])), type(iter(())), type(iter(range(1))), type(iter(range(1 << 70)))})
_WRITTEN = (torch.Tensor, torch.nn.Module)
_NO_OBJECTS = (*_WRITTEN, type, ModuleType, FunctionType, MethodType, partial)
_MOST_TENSORS = 64  # of one model or dict: an average writes into all of them
_MOST_BYTES = 1 << 20  # of an array whose contents all count
_DEPTH = 4  # containers in containers
MOST_ITEMS = 10_000
"""Of lists and dicts that are saved, all together."""
_NAMESPACES = frozenset({Namespace, SimpleNamespace})
_LAST = 32  # entries of a list whose contents are compared
_SHOWN = 40  # characters of a value in a message
_listed: weakref.WeakKeyDictionary[torch.nn.Module, list[torch.Tensor]] = weakref.WeakKeyDictionary()


def is_variable(name: str) -> bool:
    """Whether a script has given a variable this name."""
    return name.isidentifier() and not name.startswith("__")


def is_of_interest(value: Any) -> bool:
    """Whether a variable of this value is looked at."""
    kind = type(value)
    if kind in PLAIN or kind in HOLDERS or kind in SCALARS or kind in ITERATORS:
        return True
    if kind is GeneratorType:
        frame = value.gi_frame
        return frame is not None and frames.is_users(frame.f_code.co_filename, frame.f_globals.get("__name__"))
    if isinstance(value, _WRITTEN) or generators.is_generator(value):
        return True
    return np is not None and isinstance(value, (np.ndarray, np.generic))


def is_users_object(value: Any) -> bool:
    """An object of a class that the script brought, or a namespace."""
    kind = type(value)
    if kind in _NAMESPACES:
        return True
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
            listed = _listed[value] = _spread(all_of(value))
        yield from listed
    elif type(value) in HOLDERS:
        items = value.values() if isinstance(value, dict) else value
        yield from (item for item in islice(items, _MOST_TENSORS) if isinstance(item, torch.Tensor))


def all_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers. Megatron-LM's models have a list under the name of the method."""
    return [*torch.nn.Module.parameters(model), *torch.nn.Module.buffers(model)]


def _spread(tensors_of: list[torch.Tensor]) -> list[torch.Tensor]:
    """At most so many, from begin to end."""
    return tensors_of[:: -(-len(tensors_of) // _MOST_TENSORS) or 1]


def mark(value: Any, depth: int = 0) -> Any:
    """Another one when the value is another one, in this process."""
    kind = type(value)
    if kind in PLAIN:
        return repr(value)
    if isinstance(value, _WRITTEN):
        return [(id(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors(value)]
    if kind in HOLDERS:
        return _mark_of_items(value, depth)
    if kind is GeneratorType:
        return None if value.gi_frame is None else (value.gi_frame.f_lasti, *_plain_marks(value.gi_frame.f_locals))
    if kind in ITERATORS:
        return repr(value.__reduce__()[1:])
    if np is not None and isinstance(value, np.ndarray):
        return value.shape, zlib.crc32(value.tobytes()) if value.nbytes <= _MOST_BYTES else Fingerprint(value).value()
    if generators.is_generator(value):
        return f"{generators.digest(value):08x}"
    if depth and is_users_object(value):
        return id(value), *_plain_marks(value.__dict__)
    return repr(value) if kind in SCALARS or (np is not None and isinstance(value, np.generic)) else id(value)


def _mark_of_items(value: Any, depth: int) -> Any:
    size = len(value)
    held = list(value.values()) if isinstance(value, dict) else list(value)
    if set(map(type, held)) <= PLAIN:
        if size > MOST_ITEMS:
            return size, repr(_last(value))
        return size, hash(tuple(held)), hash(tuple(value)) if isinstance(value, dict) else 0
    if depth > _DEPTH:
        return size
    marks = [mark(item, depth + 1) for item in held[:: -(-size // _MOST_TENSORS) or 1]]
    return size, marks, repr(_last(value)) if isinstance(value, dict) else ""


def _plain_marks(held: dict[str, Any]) -> list[str]:
    return [repr(part) for part in list(held.values()) if type(part) in PLAIN]


def text(value: Any) -> str | None:
    """Equal in another process exactly if the value is, of what cannot be saved. None: not known."""
    if type(value) is GeneratorType:
        return repr(mark(value))
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
        return Fingerprint(value.detach()).value()
    return None


def _last(value: Any) -> list[Any]:
    """Plain values among the last items of a list or dict: enough to tell whether it goes on alike."""
    items: Any = value.items() if isinstance(value, dict) else list(value)
    if isinstance(value, dict):
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
