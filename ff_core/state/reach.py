"""What a data loader has for itself: the objects that are reached from it, always in the same order.

Through attributes, lists and dicts; what a function has bound (closure, defaults, functools.partial, its object), and
the random generators among the global names that the functions and classes of a data set use.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from ff_core.state import frames
from ff_core.state import objects as users
from ff_core.state.generators import is_generator

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_DEPTH = 6
_MOST_HELD = 64  # of a list or dict that has a global name
MOST = 2000  # objects looked at: a data set may be a list of millions
_LEAVES = (str, bytes, int, float, complex, bool, type(None), torch.Tensor, torch.nn.Module, type, types.ModuleType)
_LIBRARIES = frozenset({"abc", "builtins", "collections", "functools", "numpy", "random", "torch", "typing"})
# The iterator of a loader with processes changes all the time; the others are this package's own.
_SKIPPED = frozenset({"_iterator", "_ff_past", "_ff_first", "_ff_first_with"})


def objects(loader: Any, items: int = MOST, *, widely: bool = False) -> Iterator[tuple[str, Any]]:
    """(path from the loader, object), each object once: "dataset.transform" and what is there. Leaves are left out.

    items: of a list or dict, at most so many are looked at.  widely: also what functions of the script there ask for by
    a global name: other functions, objects of the script, short lists and dicts.
    """
    seen: set[int] = set()
    level = [("", loader)]
    for _ in range(_DEPTH):
        below: list[tuple[str, Any]] = []
        for path, part in level:
            if id(part) in seen or len(seen) > MOST or (isinstance(part, _LEAVES) and not _is_array(part)):
                continue
            seen.add(id(part))
            yield path, part
            if not is_generator(part):
                parts = _parts(part, items) + (_wide_parts(part) if widely else [])
                below += [(f"{path}.{name}" if path else name, value) for name, value in parts]
        level = below


def attributes(part: Any) -> dict[str, Any]:
    """Name -> value of what `part` has itself, in its __dict__ or its slots."""
    return {
        **{name: getattr(part, name) for name in _slots(type(part)) if hasattr(part, name)},  # type: ignore[arg-type]
        **getattr(part, "__dict__", {}),
    }


@functools.cache
def _slots(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in kind.__mro__:
        if base.__module__.split(".", 1)[0] not in _LIBRARIES:
            slots = vars(base).get("__slots__", ())
            found += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _is_array(part: Any) -> bool:
    return np is not None and isinstance(part, np.ndarray)


def _parts(part: Any, items: int) -> list[tuple[str, Any]]:
    if _is_array(part):
        return []
    if isinstance(part, dict):
        return [(str(key), value) for key, value in islice(part.items(), items)]
    if isinstance(part, (list, tuple, deque)):
        return [(str(index), value) for index, value in enumerate(islice(part, items))]
    if isinstance(part, (functools.partial, types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)):
        return behind(part, items)
    if isinstance(part, types.FunctionType):
        return [*_bound(part), *_globals(part)]
    if isinstance(part, types.GeneratorType):
        return list(part.gi_frame.f_locals.items()) if part.gi_frame is not None else []
    own = [(name, value) for name, value in attributes(part).items() if name not in _SKIPPED]
    return own + _of_class(type(part))  # type: ignore[arg-type]


def behind(value: Any, items: int = MOST) -> list[tuple[str, Any]]:
    """(name, object) of what a callable that is no plain function has: a method's object and function, a
    functools.partial's function and what it has bound. Nothing for one of another kind, or of a module.

    items: as of `objects`.
    """
    if isinstance(value, functools.partial):
        return [("func", value.func), *_parts(value.args, items), *_parts(value.keywords, items)]
    if isinstance(value, types.MethodType):
        return [("__self__", value.__self__), ("__func__", value.__func__)]
    if isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        return [] if isinstance(value.__self__, _LEAVES) else [("__self__", value.__self__)]
    return []


def _bound(function: types.FunctionType) -> list[tuple[str, Any]]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    bound = [(name, cell.cell_contents) for name, cell in cells if is_filled(cell)]
    defaults = [(f"default {index}", value) for index, value in enumerate(function.__defaults__ or ())]
    return [*bound, *defaults, *(function.__kwdefaults__ or {}).items()]


def is_filled(cell: Any) -> bool:
    """Whether a variable that a function has bound has a value."""
    try:
        return bool(cell.cell_contents is not cell)
    except ValueError:
        return False


def _globals(function: types.FunctionType) -> list[tuple[str, Any]]:
    found = [(name, function.__globals__.get(name)) for name in function.__code__.co_names]
    return [(name, value) for name, value in found if is_generator(value)]


def _wide_parts(part: Any) -> list[tuple[str, Any]]:
    if isinstance(part, CODED):
        return [(name, value) for name, value in global_values(part) if _may_be_of_loading(value)]
    return [(f"{name}()", function) for name, function in _methods(type(part))]  # type: ignore[arg-type]


CODED = (types.FunctionType, types.GeneratorType)


def globals_of(part: types.FunctionType | types.GeneratorType[Any, Any, Any]) -> dict[str, Any]:
    """What a function, or a generator that has not ended, finds under global names: the module's own dict."""
    if isinstance(part, types.FunctionType):
        return part.__globals__
    return {} if part.gi_frame is None else part.gi_frame.f_globals


def global_values(part: types.FunctionType | types.GeneratorType[Any, Any, Any]) -> list[tuple[str, Any]]:
    """What a function or a generator of the script asks for by a global name, and the functions within it, too."""
    code = part.__code__ if isinstance(part, types.FunctionType) else part.gi_code
    held = globals_of(part)
    if not frames.is_users(code.co_filename, held.get("__name__")):
        return []
    return [(name, held[name]) for name in _names(code) if name in held]


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


def _may_be_of_loading(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return len(value) <= _MOST_HELD
    return isinstance(value, types.FunctionType) or users.is_users_object(value)


@functools.cache
def _methods(kind: type) -> list[tuple[str, types.FunctionType]]:
    """Of the script's classes that `kind` is made from."""
    held = [(name, value) for base in reversed(kind.__mro__) if frames.is_users_module(base.__module__)
            for name, value in vars(base).items()]  # fmt: skip
    functions = ((name, getattr(value, "__func__", value)) for name, value in held)
    return [(name, function) for name, function in functions if isinstance(function, types.FunctionType)]


@functools.cache
def _of_class(kind: type) -> list[tuple[str, Any]]:
    """Generators that the user's class has itself, or that its methods use by a global name."""
    found: list[tuple[str, Any]] = []
    for base in kind.__mro__:
        if base.__module__.split(".", 1)[0] in _LIBRARIES:
            continue
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType):
                found += _globals(value)
            elif is_generator(value):
                found.append((name, value))
    return found
