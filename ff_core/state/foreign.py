"""Objects of libraries that the script has: what of them can be saved, and put back into the very object.

The simple attributes of an object, such as a meter's sum and count, its random generators, its tensors and models, and
those of objects that it has, two deep. What else such an object has is left as it is. Python's own library:
`ff_core.state.standard`.
"""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import torch

from ff_core.state import frames, generators, objects, standard

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_MOST_ENTRIES = 2000  # of a list or dict that is an attribute
_MOST_BYTES = 1 << 20  # of an array or a tensor that is one
_DEPTH = 2  # objects in objects of a library
_MOST_OBJECTS = 32  # in a list or dict of it
_ACTIVE = (Thread, BaseProcess, io.IOBase, socket.socket)
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_COUNTED = frozenset({"torch.quasirandom"})  # modules of those whose objects count
#: They go on by themselves, save themselves, or are looked at otherwise.
PACKAGES = frozenset({"torch", "numpy", "datasets", "tokenizers", *frames.FRAMEWORKS})


@objects.cached
def is_librarys_class(kind: type) -> bool:
    """Whether objects of `kind` come from a library that is none of the frameworks, and have attributes."""
    package = str(kind.__module__).split(".", 1)[0]
    return (
        bool(kind.__dictoffset__)
        and (package not in PACKAGES or kind.__module__ in _COUNTED)
        and package not in sys.stdlib_module_names
        and not objects.is_users_class(kind)
        and not issubclass(kind, objects.NO_OBJECTS)
        and objects.base_of(kind) is None
        and not standard.is_kind(kind)
    )


def simple_parts(value: Any, depth: int = 0) -> tuple[dict[str, Any], bool]:
    """Attributes of a library's object that are plain, small arrays, or containers of plain values, or such objects in
    their turn, alone or in a list or dict, or random generators; whether it has no others. depth: of `value` in
    another such object."""
    held = objects.attributes(value)
    simple = {name: part for name, part in list(held.items()) if _is_simple(part, depth)}
    return simple, len(simple) == len(held)


def tensor_parts(value: Any) -> Iterator[tuple[str, Any, list[torch.Tensor]]]:
    """(name, value, tensors) of attributes that are no simple part, and are tensors: an average of all weights has a
    list of them."""
    for name, part in list(objects.attributes(value).items()):
        if isinstance(part, torch.Tensor):
            if not _is_simple(part, 0):
                yield name, part, [part]
        elif type(part) in (list, tuple, dict):
            items = list(part.values()) if type(part) is dict else list(part)
            if items and all(isinstance(item, torch.Tensor) for item in items) and not _is_simple(part, 0):
                yield name, part, items


def _is_simple(part: Any, depth: int) -> bool:
    kind = type(part)
    if kind in _PLAIN or generators.is_generator(part):
        return True
    if is_librarys_class(kind):
        return depth < _DEPTH and not goes_on_by_itself(part)
    if kind is torch.Tensor:
        return not part.requires_grad and not part.is_meta and part.nbytes <= _MOST_BYTES
    if np is not None and kind is np.ndarray:
        return part.dtype.kind != "O" and part.nbytes <= _MOST_BYTES
    base = objects.base_of(kind)
    if base is not kind or len(part) > _MOST_ENTRIES:
        return False
    return objects.marshalled(part, base) is not None or (depth < _DEPTH and _has_objects(part, depth))


def _has_objects(held: Any, depth: int) -> bool:
    """A list or dict of a library's objects, or of tensors, and of plain values."""
    items = list(held.values()) if isinstance(held, dict) else list(held)
    keys = held if isinstance(held, dict) else ()
    return (
        isinstance(held, (list, tuple, dict))
        and 0 < len(items) <= _MOST_OBJECTS
        and all(type(key) in _PLAIN for key in keys)
        and all(_is_simple(part, depth + 1) for part in items)
    )


def goes_on_by_itself(value: Any) -> bool:
    """Whether it has a thread, a process, a file or a socket: what it counts belongs to what these do."""
    return any(isinstance(part, _ACTIVE) for part in list(objects.attributes(value).values()))
