"""One place where a script has variables: a running function, a module, a class, what a function has bound, an object.

with running() as functions:
    space.values(functions)     # name -> value, now
    space.write(functions, {"step": 3})
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import CellType, FrameType, FunctionType
from typing import Any

import torch

from ff_core.state import frames, generators, objects, reach, values

Functions = dict[str, FrameType]
"""Label -> the script's running function."""


class Space:
    """Variables under names of one place. label: goes before their names.  known: those that were there at first."""

    root: str | None = None
    """The running function that it belongs to."""
    always = False
    """What a replacement has there before the loop is no proof of what the dead rank had: all of it is saved."""

    def __init__(self, label: str, held: dict[str, Any]) -> None:
        self.label, self._held = label, held
        self.known = [name for name, value in held.items() if values.is_variable(name) and values.is_of_interest(value)]
        self.all_known = frozenset(held)

    def is_name(self, name: Any) -> bool:
        """Whether a value under this name counts."""
        return values.is_variable(name)

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return self._held

    def lasting(self) -> Mapping[str, Any] | None:
        """The very mapping that `values()` gives each time, as long as the process lives; None: there is none."""
        return self._held if type(self).values is Space.values and self.root is None else None

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        self._held.update(new)

    def remove(self, functions: Functions, name: str) -> None:
        self._held.pop(name, None)


class OfFunction(Space):
    """Of one that is running. Another call of it in another process has the same label."""

    def __init__(self, label: str, frame: FrameType) -> None:
        super().__init__(label, frames.locals_of(frame))
        self._held = {}  # a loss and its graph are not kept alive

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return frames.locals_of(functions[self.label]) if self.label in functions else {}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        frames.set_variables(functions[self.label], new)

    def remove(self, functions: Functions, name: str) -> None:
        pass  # a function cannot ask whether it has a name


class OfClass(Space):
    def __init__(self, label: str, owner: type) -> None:
        super().__init__(label, dict(vars(owner)))
        self._owner = owner

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return vars(self._owner)

    def lasting(self) -> Mapping[str, Any] | None:
        return vars(self._owner) if self.root is None else None

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for name, value in new.items():
            setattr(self._owner, name, value)

    def remove(self, functions: Functions, name: str) -> None:
        delattr(self._owner, name)


class Bound(Space):
    """What a function has bound."""

    def __init__(self, label: str, cells: dict[str, CellType]) -> None:
        self._cells = cells
        super().__init__(label, dict(self.values({})))

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return {name: cell.cell_contents for name, cell in self._cells.items() if reach.is_filled(cell)}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for name, value in new.items():
            self._cells[name].cell_contents = value

    def remove(self, functions: Functions, name: str) -> None:
        pass


class OfDefaults(Space):
    """Defaults of a function's parameters."""

    def __init__(self, label: str, function: FunctionType) -> None:
        self._function = function
        count, code = len(function.__defaults__ or ()), function.__code__
        self._names = code.co_varnames[code.co_argcount - count : code.co_argcount]
        super().__init__(label, self.values({}))
        del self._held

    def values(self, functions: Functions) -> dict[str, Any]:
        placed = zip(self._names, self._function.__defaults__ or (), strict=True)
        return {**dict(placed), **(self._function.__kwdefaults__ or {})}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        now = self._function.__defaults__ or ()
        if not new.keys().isdisjoint(self._names):
            self._function.__defaults__ = tuple(
                new.get(name, value) for name, value in zip(self._names, now, strict=True)
            )
        named = self._function.__kwdefaults__ or {}
        named.update((name, new[name]) for name in named.keys() & new.keys())

    def remove(self, functions: Functions, name: str) -> None:
        pass


class OfLibrary(Space):
    always = True

    def __init__(self, label: str, held: dict[str, Any], left_out: frozenset[str]) -> None:
        super().__init__(label, held)
        self.known = [name for name in self.known if name not in left_out]


class OfCallable(Space):
    """What one that is no plain function holds, and what may be nowhere else: a method its object, a functools.partial
    what it has bound. parts: all of that."""

    def __init__(self, label: str, owner: Any) -> None:
        self._owner = owner
        self.parts = self._parts()
        super().__init__(label, self.parts)
        del self._held
        is_method = not isinstance(owner, functools.partial)  # its function has nothing that changes
        kept = {name for name, part in self.parts.items() if self._is_kept(part) and not (is_method and name == "func")}
        self.known = [name for name in self.known if name in kept]

    def _parts(self) -> dict[str, Any]:
        behind = reach.behind(self._owner)
        return {f"argument{name}" if name.isdecimal() else name.strip("_"): part for name, part in behind}

    def _is_kept(self, part: Any) -> bool:
        """What changes in place, but for objects and models, which are looked at by themselves."""
        kind = type(part)
        is_object = objects.is_users_object(part) or isinstance(part, torch.nn.Module) or generators.is_global(part)
        return not (values.is_fixed(part) or is_object or issubclass(kind, (tuple, *objects.NAMED)))

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return self._parts()

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        owner = self._owner
        if isinstance(owner, functools.partial):  # a method has the object that it has
            args = [new.get(f"argument{place}", part) for place, part in enumerate(owner.args)]
            keywords = {name: new.get(name, part) for name, part in owner.keywords.items()}
            owner.__setstate__((owner.func, tuple(args), keywords, vars(owner)))  # type: ignore[attr-defined]

    def remove(self, functions: Functions, name: str) -> None:
        pass


@contextmanager
def running() -> Iterator[Functions]:
    """The script's functions that run in this thread."""
    found: dict[str, FrameType] = {}
    for frame in frames.of_script():
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            found.setdefault(f"{frame.f_code.co_name}().", frame)
    try:
        yield found
    finally:
        found.clear()  # a frame that keeps itself is never let go


class OfObject(Space):
    """An object of the script's own class, or a model's part, as long as it lives."""

    def __init__(self, label: str, owner: Any) -> None:
        super().__init__(label, objects.attributes(owner))
        self.owner = reference(owner)
        del self._held  # what slots have is another dict each time

    def values(self, functions: Functions) -> Mapping[str, Any]:
        owner = self.owner()
        return {} if owner is None else objects.attributes(owner)

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for name, value in new.items():
            objects.assign(self.owner(), name, value)

    def remove(self, functions: Functions, name: str) -> None:
        objects.remove(self.owner(), name)


def reference(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


class OfContextVariable(Space):
    """What a context variable has in the training thread, as "value"."""

    def __init__(self, label: str, variable: ContextVar[Any]) -> None:
        self._variable = variable
        super().__init__(label, dict(self.values({})))

    def values(self, functions: Functions) -> Mapping[str, Any]:
        value = self._variable.get(objects.GONE)
        return {} if value is objects.GONE else {"value": value}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        self._variable.set(new["value"])

    def remove(self, functions: Functions, name: str) -> None:
        pass  # it had no value, and cannot lose one


class OfThread(Space):
    """What a `threading.local()` has in the training thread."""

    def __init__(self, label: str, local: threading.local) -> None:
        super().__init__(label, vars(local))
