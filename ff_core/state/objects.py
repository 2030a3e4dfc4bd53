"""Objects of a script: which have something of their own, what it is, and how to make one like another.

An object is made without calling any of its class's functions: `new()` finds the class by its name among what the
script has imported. Classes, functions and members of an enum are known by name, too.
"""

from __future__ import annotations

import functools
import marshal
import sys
import weakref
from argparse import Namespace
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque
from collections.abc import Callable
from enum import Enum
from multiprocessing.process import BaseProcess
from threading import Thread, local
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeVar, cast

import torch

from ff_core.state import frames
from ff_core.state.room import LostError

GONE = object()
"""In place of a value that is not there."""
#: Containers, those first of which others are made.
BASES: tuple[type, ...] = (OrderedDict, Counter, defaultdict, dict, list, tuple, deque, set, frozenset)
NAMED = (type, FunctionType, BuiltinFunctionType)
_NAMESPACES = frozenset({Namespace, SimpleNamespace, ChainMap, UserDict, UserList, UserString})
#: What these have goes with a thread, a process or a frame, which nobody can set.
NO_OBJECTS = (
    torch.Tensor, torch.nn.Module, *NAMED, ModuleType, MethodType, functools.partial, Enum, BaseException, Thread,
    BaseProcess, local, int, float, str, bytes,
)  # fmt: skip
_TORCHS = frozenset(vars(torch.nn.Module())) | {"_compiled_call_impl"}  # of every module
_FRAMEWORKS = frames.OURS | {"torch", "deepspeed", "megatron"}


_Of = TypeVar("_Of", bound=Callable[[type], Any])


def cached(function: _Of) -> _Of:
    """functools.cache, which has another opinion about the type of a class."""
    return cast(_Of, functools.cache(function))


@cached
def base_of(kind: type) -> type | None:
    """The kind of container that `kind` is or was made from."""
    return next((base for base in BASES if issubclass(kind, base)), None)


@cached
def is_users_class(kind: type) -> bool:
    """Whether the script brought `kind`, or it is a namespace, and its objects have attributes that can be set."""
    if kind in _NAMESPACES:
        return True
    if issubclass(kind, NO_OBJECTS) or not frames.is_users_module(kind.__module__):
        return False
    return bool(kind.__dictoffset__ or _slots(kind))


def is_users_object(value: Any) -> bool:
    """An object of such a class that is no container."""
    kind = type(value)
    return is_users_class(kind) and base_of(kind) is None


@cached
def has_more(kind: type) -> bool:
    """Whether modules of the class `kind` may have more than torch's modules have."""
    return issubclass(kind, torch.nn.Module) and kind.__module__.split(".", 1)[0] not in _FRAMEWORKS


@cached
def _slots(kind: type) -> dict[str, Any]:
    """Name -> descriptor, of what the classes of the script keep in slots."""
    found = {}
    for base in reversed(kind.__mro__):
        own = vars(base).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else tuple(own):
            mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") else name
            if mangled in vars(base) and name not in ("__dict__", "__weakref__"):
                found[mangled] = vars(base)[mangled]
    return found


def attributes(value: Any) -> dict[str, Any]:
    """What an object has itself. Not to be written; the object's own where it has no slots."""
    kind = type(value)
    held: dict[str, Any] = object.__getattribute__(value, "__dict__") if kind.__dictoffset__ else {}
    if type(held) is not dict or held is value:
        return {}
    if issubclass(kind, torch.nn.Module):
        return {name: part for name, part in held.items() if name not in _TORCHS and isinstance(name, str)}
    slots = _slots(kind)
    if not slots:
        return held
    filled = ((name, slot.__get__(value, kind)) for name, slot in slots.items() if _is_filled(slot, value))
    return {**dict(filled), **held}


def _is_filled(slot: Any, value: Any) -> bool:
    try:
        slot.__get__(value, type(value))
    except AttributeError:
        return False
    return True


def assign(value: Any, name: str, part: Any) -> None:
    """Set an attribute, whatever the class thinks of that."""
    slot = _slots(type(value)).get(name)
    if slot is not None:
        slot.__set__(value, part)
    else:
        object.__getattribute__(value, "__dict__")[name] = part


def remove(value: Any, name: str) -> None:
    """Take an attribute away, if it is there."""
    slot = _slots(type(value)).get(name)
    if slot is None:
        object.__getattribute__(value, "__dict__").pop(name, None)
    elif _is_filled(slot, value):
        slot.__delete__(value)


_listed: weakref.WeakKeyDictionary[torch.nn.Module, list[torch.Tensor]] = weakref.WeakKeyDictionary()


def tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, listed once: torch takes milliseconds for a large model. Not to be changed."""
    listed = _listed.get(model)
    if listed is None:  # Megatron-LM's models have a list under the name of the method
        listed = _listed[model] = [*torch.nn.Module.parameters(model), *torch.nn.Module.buffers(model)]
    return listed


# ---- by name --------------------------------------------------------------------------------------------------------

Name = list[str]
"""[module, name within it]."""


def name_of(named: Any) -> Name:
    """Of a class or a function."""
    is_builtin = isinstance(named, BuiltinFunctionType)  # that of torch.tanh is a class that nobody finds
    return [str(named.__module__), named.__name__ if is_builtin else named.__qualname__]


def find(name: Name) -> Any:
    """What has this name here. GONE: nothing, as where it was made within a function."""
    found: Any = sys.modules.get(name[0], GONE)
    for part in name[1].split("."):
        found = GONE if found is GONE else getattr(found, part, GONE)
    return found


def by_name(name: Name) -> Any:
    """What a saved name stands for. Raises LostError if it is not there."""
    found = find(name)
    if found is GONE:
        raise LostError(f"{'.'.join(name)} is not there")
    return found


def is_found(named: Any) -> bool:
    """Whether another process finds it by its name."""
    return isinstance(getattr(named, "__module__", None), str) and find(name_of(named)) is named


def class_of(name: Name, live: Any) -> type | None:
    """The class `name`: that of `live` if it has this name, which one within a function has, too."""
    if name_of(type(live)) == name:
        return type(live)
    found = find(name)
    return found if isinstance(found, type) else None


def marshalled(value: Any, base: type) -> bytes | None:
    """A container that has nothing but plain values, in other containers, too. None: it has something else."""
    if base is not type(value) or base not in (list, tuple, dict, set, frozenset):
        value = list(base.items(value)) if issubclass(base, dict) else list(base.__iter__(value))  # type: ignore[attr-defined]
    try:
        return marshal.dumps(value, 2)
    except ValueError:
        return None


def new(kind: type) -> Any:
    """An object without attributes."""
    return object.__new__(kind)
