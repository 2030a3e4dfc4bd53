"""Where a script has its variables: running functions, its modules, its classes and objects, what functions have bound,
and objects of a library that drives its training.

spaces = found_spaces(most=1000, left=covered.has)
with running() as functions:
    for space in spaces:
        space.values(functions)     # name -> value, now
        space.write(functions, {"step": 3})
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FrameType, FunctionType
from typing import Any

from ff_core.state import frames, reach, switched, values

_DEPTH = 2  # objects in objects
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

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return self._held

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        self._held.update(new)

    def remove(self, functions: Functions, name: str) -> None:
        self._held.pop(name, None)


class _OfFunction(Space):
    """Of one that is running. Another call of it in another process has the same label."""

    def __init__(self, label: str, frame: FrameType) -> None:
        super().__init__(label, locals_of(frame))
        self._held = {}  # a loss and its graph are not kept alive

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return locals_of(functions[self.label]) if self.label in functions else {}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        frames.set_variables(functions[self.label], new)

    def remove(self, functions: Functions, name: str) -> None:
        pass  # a function cannot ask whether it has a name


class _OfClass(Space):
    def __init__(self, label: str, owner: type) -> None:
        super().__init__(label, dict(vars(owner)))
        self._owner = owner

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return vars(self._owner)

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for name, value in new.items():
            setattr(self._owner, name, value)

    def remove(self, functions: Functions, name: str) -> None:
        delattr(self._owner, name)


class _Bound(Space):
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


class _OfLibrary(Space):
    always = True

    def __init__(self, label: str, held: dict[str, Any], left_out: frozenset[str]) -> None:
        super().__init__(label, held)
        self.known = [name for name in self.known if name not in left_out]


_of_libraries: dict[str, tuple[weakref.ReferenceType[Any], frozenset[str]]] = {}


def look_into(label: str, obj: Any, left_out: frozenset[str] = frozenset()) -> None:
    """A library's `obj` has a part in training: its attributes count like variables of the script.

    label: goes before their names, ends in a dot, and is the same in another process.  left_out: names of attributes.
    """
    _of_libraries[label] = weakref.ref(obj), left_out


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


def locals_of(frame: FrameType) -> dict[str, Any]:
    """A copy."""
    held = frame.f_locals
    copied = dict(held)
    if type(held) is dict:  # before Python 3.13 the frame keeps it, and so would keep a loss and its graph alive
        held.clear()
    return copied


class _Finder:
    def __init__(self, most: int, left: Callable[[Any], bool]) -> None:
        self._most, self._left, self._seen = most, left, set[int]()
        self._root: str | None = None
        self.spaces: list[Space] = []

    def add(self, space: Space, depth: int = 0, functions: Functions | None = None) -> None:
        space.root = self._root
        held = space.values(functions or {})
        space.known = [name for name in space.known if not self._left(held[name])][: max(self._most, 0)]
        self._most -= len(space.known)
        self.spaces.append(space)
        for name, value in list(held.items()):
            if name.startswith("__") or id(value) in self._seen or self._left(value):
                continue
            if type(value) is FunctionType:
                self.bound(f"{space.label}{name}().", value)
            elif isinstance(value, type) and depth == 0 and _is_users(value.__module__):
                self._seen.add(id(value))
                self.add(_OfClass(f"{space.label}{name}.", value), _DEPTH)
            elif depth < _DEPTH and values.is_users_object(value):
                self._seen.add(id(value))
                self.add(Space(f"{space.label}{name}.", value.__dict__), depth + 1)

    def object(self, label: str, obj: Any, left_out: frozenset[str]) -> None:
        self._seen.add(id(obj))
        self.add(_OfLibrary(label, obj.__dict__, left_out), _DEPTH - 1)

    def enter(self, root: str | None) -> None:
        """What is added from now on belongs to this function."""
        self._root = root

    def bound(self, label: str, function: FunctionType) -> None:
        """A function keeps numbers in cells, which others that are running may have as variables, too."""
        self._seen.add(id(function))
        if not function.__closure__ or not frames.is_users(function.__code__.co_filename, function.__module__):
            return
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        fresh = {name: cell for name, cell in cells.items() if id(cell) not in self._seen}
        self._seen.update(map(id, fresh.values()))
        if fresh:
            self.add(_Bound(label, fresh), _DEPTH - 1)


def _is_users(module: str | None) -> bool:
    file = getattr(sys.modules.get(str(module)), "__file__", None)
    return file is not None and frames.is_users(file, module)


def found_spaces(most: int, left: Callable[[Any], bool]) -> list[Space]:
    """Those that the script has now. most: names, all together.  left: what is not looked into."""
    finder = _Finder(most, left)
    for label, (referred, left_out) in _of_libraries.items():  # first: a variable of the script may have it, too
        obj = referred()
        if obj is not None:
            finder.object(label, obj, left_out)
    names = sorted(filter(_is_users, list(sys.modules)), key=lambda name: name != "__main__")
    for name in names[:1] if "__main__" in names else []:
        finder.add(Space("", sys.modules[name].__dict__))
    with running() as functions:
        for label, frame in reversed(functions.items()):  # what several have belongs to the one that ends last
            finder.enter(label)
            finder.add(_OfFunction(label, frame), functions=functions)
    finder.enter(None)
    for hook in _hooks():
        finder.bound(f"{hook.__name__}().", hook)
    for name in names:
        if name != "__main__":
            finder.add(Space(f"{name}:", sys.modules[name].__dict__))
    return finder.spaces


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
