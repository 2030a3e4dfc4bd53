"""What is saved by somebody else already, or must be left alone: so that a script's variables do not save it again."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from itertools import chain
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import torch

from ff_core.state import found, frames, reach, registered, switched, values
from ff_core.state.known import Known
from ff_core.state.values import PLAIN

_savers: list[Any] = []  # functions that save what they use
_loaders: list[Any] = []  # what batches come from: whoever hands them out knows where it stands
_themselves: list[Any] = []
_trainers: list[Any] = []  # what an adapter has said that it saves


def saves(function: Any) -> None:
    """What `function` uses is saved by whoever calls it."""
    _savers.append(function)


def feeds(loader: Any) -> None:
    """Batches come from `loader` now: it and what it uses go on by themselves after a failure."""
    _loaders.append(loader)


def itself(obj: Any) -> None:
    """An adapter looks at what `obj` has: it is not looked at once more as a variable."""
    _themselves.append(obj)


def trains(adapter: Any, tensors: Iterable[torch.Tensor]) -> None:
    """The trainer's adapter (see ff_core.contract.adapter), which saves these tensors and its parameter groups."""
    groups = adapter.hyperparameters()
    _trainers[:] = [adapter, groups, *groups, *tensors]


class Covered:
    """As it is now."""

    def __init__(self) -> None:
        # One of ours saves a count of a library's object, from which much of the script can be reached.
        named = [obj for obj in registered.known().values() if not _is_ours(obj)]
        found_now = reached([*named, *_savers, *_loaders])
        owned: list[Any] = [*_themselves, *_trainers]
        for owner in found.stepped():
            owned += [owner, *(owner.param_groups if isinstance(owner, torch.optim.Optimizer) else ())]
        for group in [part for part in owned if isinstance(part, dict)]:
            owned += group.get("params", ())
        for owner in found.stepped():
            owned += values.all_of(owner) if isinstance(owner, torch.nn.Module) else ()
        for module in switched.left_out():
            owned += [module, *chain(module._parameters.values(), module._buffers.values())]
        # None stands for a parameter that a module does not have: it is many a variable's value, too.
        found_now.update((id(part), part) for part in owned if type(part) not in PLAIN)
        self._known = Known(found_now.values())
        tensors = [part for part in owned if isinstance(part, torch.Tensor)]
        self._storages: dict[int, list[weakref.ref[torch.Tensor]]] = {}
        for tensor in tensors:
            self._storages.setdefault(_storage(tensor), []).append(weakref.ref(tensor))

    def is_one(self, value: Any) -> bool:
        """Whether `value` is one of these."""
        return value in self._known

    def _has_storage(self, storage: int) -> bool:
        """It may be another's by now: of a tensor that has gone, or was given other memory."""
        owners = (ref() for ref in self._storages.get(storage, ()))
        return any(owner is not None and _storage(owner) == storage for owner in owners)

    def has(self, value: Any) -> bool:
        """Whether `value` is one of these, or lies in the memory of one, or has nothing else."""
        if self.is_one(value):
            return True
        if isinstance(value, torch.Tensor):
            storage = _storage(value)
            return storage != 0 and self._has_storage(storage)
        if isinstance(value, torch.nn.Module):
            held = values.all_of(value)
            return bool(held) and all(map(self.has, held))
        return False


def _is_ours(obj: Any) -> bool:
    return type(obj).__module__.split(".", 1)[0] in frames.OURS


def _storage(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # of a kind that has none
        return 0


def reached(roots: Iterable[Any]) -> dict[int, Any]:
    """id() -> object, of the objects and tensors within `roots`, through attributes, containers, and what a function
    uses."""
    all_found: dict[int, Any] = {}
    level = list(roots)
    for _ in range(6):
        below: list[Any] = []
        for part in level:
            if id(part) in all_found or type(part) in PLAIN or isinstance(part, (type, ModuleType)):
                continue
            if len(all_found) > 100_000:
                return all_found
            all_found[id(part)] = part
            below += _parts(part)
        level = below
    return all_found


def _parts(part: Any) -> list[Any]:
    if isinstance(part, torch.nn.Module):
        return [*values.all_of(part), *vars(part).values()]
    if isinstance(part, torch.Tensor):
        return []
    if isinstance(part, dict):
        return list(part.values())
    if isinstance(part, (list, tuple, set, deque)):
        return list(part)
    if isinstance(part, MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, GeneratorType):
        used = part.gi_code.co_names
        frame = part.gi_frame
        return [] if frame is None else [*frame.f_locals.values(), *(frame.f_globals.get(name) for name in used)]
    if isinstance(part, FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or () if reach.is_filled(cell)]
        return [*cells, *(part.__globals__.get(name) for name in part.__code__.co_names)]
    return [*vars(part).values()] if isinstance(getattr(part, "__dict__", None), dict) else []
