"""What a script has in variables of its own: a best loss, a count that decides, an average in plain tensors.

Nobody saves them, and a replacement begins with what they were before the training loop. Whether that matters only the
script knows. But it can be told: `save()` gives the variables that training has changed, and `differing()` names those
that are not what they were in the version that the job goes on from.

Looked at: what the script's functions that are running had in their variables when training began, the global names of
their modules, and the attributes of objects of the script's own classes there. Plain values and short lists are
compared, of random generators the states, of larger tensors and of models only whether they were written.
"""

from __future__ import annotations

import inspect
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from ff_core.state import found, frames, reach, registered, switched, values
from ff_core.state.values import PLAIN

_MOST_NAMES = 1000  # variables and attributes that are looked at, all together
_DEPTH = 2  # objects in objects

Space = dict[str, Any]
"""Variables or attributes, by name."""

REMEDY = (
    "Nobody saves them. A replacement begins with what they are before the training loop, and an iteration that is "
    "made again changes them a second time. Such a variable may decide about training (a count, a best loss) or be a "
    "result of it (an average of the weights): then save it with ff_core.register_state(name, obj), in the usual loop "
    "also with ff_deepspeed.client_state(...)"
)
OTHERS = "rank {rank} goes on from version {version}, but variables of its script are not what they were then: {what}. "
WRITTEN = "the script writes {what} in its training loop. "


class Variables:
    """Of one process. covered: gives ids of tensors and objects that are saved anyway."""

    def __init__(self, covered: Callable[[], set[int]]) -> None:
        self._covered = covered
        self._process = uuid.uuid4().hex
        self._spaces: list[tuple[str, dict[str, Any] | None, list[str]]] = []  # label, attributes if an object's, names
        self._bound: list[tuple[str, CellType]] = []  # path, where a hook has it
        self._before: dict[str, Any] = {}  # path -> mark when training began
        self._plain: dict[str, Any] = {}  # path -> value then, of what cannot be written in place

    def begin(self) -> None:
        """Training begins: what is there now was made on the way to the loop, as a replacement makes it, too."""
        self._spaces, self._before, self._plain, self._bound = [], {}, {}, []
        seen = set(self._covered())
        with _running() as spaces:
            for label, held in spaces.items():
                self._enter(label, held, None, seen, 0)
        for hook in _hooks():
            self._cells(hook, seen)

    def _enter(self, label: str, held: Space, owner: Space | None, seen: set[int], depth: int) -> None:
        room = _MOST_NAMES - len(self._before)
        items = [(name, value) for name, value in held.items() if not _is_in(seen, value)]
        names = [name for name, value in items if values.is_of_interest(name, value)][:room]
        self._spaces.append((label, owner, names))
        for name in names:
            path, value = label + name, held[name]
            self._before[path] = values.mark(value)
            if type(value) in PLAIN:
                self._plain[path] = value
        for name, value in items:
            if depth < _DEPTH and not name.startswith("__") and values.is_users_object(value) and id(value) not in seen:
                seen.add(id(value))
                self._enter(f"{label}{name}.", value.__dict__, value.__dict__, seen, depth + 1)

    def _cells(self, hook: FunctionType, seen: set[int]) -> None:
        """What a hook on the model has bound. A list or an object: a hook of its own keeps a number in a cell, too."""
        if id(hook) in seen:
            return
        seen.add(id(hook))
        for name, cell in zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True):
            if reach.is_filled(cell):
                self._bound.append((f"{hook.__name__}().{name}", cell))
                self._before[self._bound[-1][0]] = values.mark(cell.cell_contents)

    def save(self) -> dict[str, Any]:
        """{"process", "changed": path -> [text, shown, mark]}: what is not what it was when training began.

        text: equal in another process exactly if the value is, None where that is not known.  mark: in this process.
        """
        changed: dict[str, Any] = {}
        for path, value in self._now():
            if path in self._plain and self._plain[path] is value:
                continue
            mark = values.mark(value)
            if mark != self._before[path]:
                changed[path] = [values.text(value), values.shown(value), zlib.crc32(repr(mark).encode())]
        return {"process": self._process, "changed": changed}

    def differing(self, saved: dict[str, Any]) -> list[str]:
        """In words, variables that are not here what they were where `save()` was called."""
        mine, found = saved["process"] == self._process, []
        now = dict(self._now())
        covered = self._covered() if now else set()
        for path, (text, was, mark) in saved["changed"].items():
            if path not in now:
                continue
            value = now[path]
            if _is_in(covered, value):
                continue
            if mine and zlib.crc32(repr(values.mark(value)).encode()) == mark:
                continue
            own = values.text(value)
            if text is None or own is None:
                found.append(f"{path} ({type(value).__qualname__})")
            elif own != text:
                found.append(f"{path} ({values.shown(value)}, was {was})")
        return found

    def written(self) -> list[str]:
        """Names of models and tensors that training has written in place, and that nobody saves. Single numbers are
        left out."""
        covered, found = self._covered(), []
        for path, value in self._now():
            held = [tensor for tensor in values.tensors(value) if tensor.numel() > 1 and id(tensor) not in covered]
            before, mark = self._before[path], values.mark(value)
            if held and id(value) not in covered and before != mark and values.same_tensors(before, mark):
                found.append(f"{path} ({type(value).__qualname__})")
        return found

    def _now(self) -> Iterator[tuple[str, Any]]:
        with _running() as spaces:
            for label, owner, names in self._spaces:
                held = owner if owner is not None else spaces.get(label, {})
                for name in names:
                    if name in held:
                        yield label + name, held[name]
        for path, cell in self._bound:
            if reach.is_filled(cell) and values.is_of_interest("", cell.cell_contents):
                yield path, cell.cell_contents


def _is_in(ids: set[int], value: Any) -> bool:
    """Whether `value` is one of these, or has nothing but them."""
    held = list(values.tensors(value))
    return id(value) in ids or (bool(held) and all(id(tensor) in ids for tensor in held))


_savers: list[Any] = []  # functions that save what they use


def saves(function: Any) -> None:
    """What `function` uses is saved by whoever calls it."""
    _savers.append(function)


def _saved_anyway() -> set[int]:
    ids = reached([*registered.known().values(), *_savers])
    for owner in found.stepped():
        ids.add(id(owner))
        ids.update(map(id, values.tensors(owner)))
        for group in owner.param_groups if isinstance(owner, torch.optim.Optimizer) else ():
            ids.update(map(id, group["params"]))
    for module in switched.left_out():
        ids.add(id(module))
        ids.update(map(id, chain(module._parameters.values(), module._buffers.values())))
    return ids


of_process = Variables(_saved_anyway)
"""Those of the script that runs in this process."""


@contextmanager
def _running() -> Iterator[dict[str, dict[str, Any]]]:
    """Label -> variables, of the script's running functions and their modules."""
    spaces: dict[str, dict[str, Any]] = {}
    snapshots = []
    for frame in frames.of_script():
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            held = frame.f_locals
            snapshots.append(held)
            spaces.setdefault(f"{frame.f_code.co_name}().", dict(held))
        module = frame.f_globals.get("__name__")
        spaces.setdefault("" if module == "__main__" else f"{module}.", frame.f_globals)
    try:
        yield spaces
    finally:
        spaces.clear()
        for held in snapshots:
            # Before Python 3.13 the frame keeps this dict, and so would keep a loss and its graph alive.
            if type(held) is dict:
                held.clear()


def reached(roots: Iterable[Any]) -> set[int]:
    """Ids of the objects and tensors within `roots`, through attributes, containers, and what a function uses."""
    found: set[int] = set()
    level = list(roots)
    for _ in range(6):
        below: list[Any] = []
        for part in level:
            if id(part) in found or type(part) in PLAIN or isinstance(part, (type, ModuleType)):
                continue
            if len(found) > 100_000:
                return found
            found.add(id(part))
            below += _parts(part)
        level = below
    return found


def _parts(part: Any) -> list[Any]:
    if isinstance(part, torch.nn.Module):
        return [*part.parameters(), *part.buffers(), *vars(part).values()]
    if isinstance(part, torch.Tensor):
        return []
    if isinstance(part, dict):
        return list(part.values())
    if isinstance(part, (list, tuple, set, deque)):
        return list(part)
    if isinstance(part, MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or () if reach.is_filled(cell)]
        return [*cells, *(part.__globals__.get(name) for name in part.__code__.co_names)]
    return [*vars(part).values()] if isinstance(getattr(part, "__dict__", None), dict) else []


def _hooks() -> list[FunctionType]:
    """The script's functions among the hooks on models that are trained."""
    held: list[Any] = []
    for module in switched.left_out():
        held += [module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks]
        for parameter in module._parameters.values():
            if parameter is not None:
                held += [parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)]
    functions = [hook for hooks in held if hooks for hook in hooks.values() if type(hook) is FunctionType]
    return [hook for hook in functions if frames.is_users(hook.__code__.co_filename, hook.__module__)]
