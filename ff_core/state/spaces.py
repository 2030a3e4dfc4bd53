"""Where a script has its variables: running functions, its modules, its classes and objects, what functions have bound,
what it has switched for the process, and objects of a library that drives its training.

found = found_spaces(most=1000, covered=Covered())
found.spaces    # see ff_core.state.space
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ff_core.state import caches, foreign, found, frames, objects, reach, switched, values
from ff_core.state.covered import Covered
from ff_core.state.given import OfGiven
from ff_core.state.modes import hooks_of, hooks_of_tensor
from ff_core.state.process_wide import OfEnvironment, OfProcess, OfSignals, OfTorch, OfUmask
from ff_core.state.scripted import OfScripted, is_scripted
from ff_core.state.space import (
    Bound,
    Functions,
    OfCallable,
    OfClass,
    OfContextVariable,
    OfDefaults,
    OfFunction,
    OfLibrary,
    OfObject,
    OfThread,
    Space,
    reference,
    running,
)
from ff_core.state.tensor_attributes import OfTensors
from ff_core.state.thread_wide import OfThisThread

_DEPTH = 4  # objects in objects and containers
_MOST_HELD = 64  # objects in one list or dict; what has more is looked at as a whole
_MOST_SPACES = 400
_OF_ALL: tuple[Any, ...] = (
    *(held for name, held in vars(torch.nn.modules.module).items() if name.startswith("_global_") and "hooks" in name
      and "registration" not in name and isinstance(held, dict)),
    _global_optimizer_pre_hooks, _global_optimizer_post_hooks,
)  # fmt: skip
more: list[Callable[[], Space]] = []  # make what an adapter adds
_loaders: list[Any] = []
_of_libraries: dict[str, tuple[weakref.ReferenceType[Any], frozenset[str]]] = {}


def look_into(label: str, obj: Any, left_out: frozenset[str] = frozenset()) -> None:
    """A library's `obj` has a part in training: its attributes count like variables of the script.

    label: goes before their names, ends in a dot, and is the same in another process.  left_out: names of attributes.
    """
    _of_libraries[label] = weakref.ref(obj), left_out


def look_through(loader: Any) -> None:
    """Items come from `loader`, whose data set may be in no variable: objects of the script's classes in it count."""
    _loaders.append(loader)


@dataclass(slots=True)
class Found:
    """What the script had when it was looked for."""

    spaces: list[Space]
    known: dict[int, tuple[str, Callable[[], Any]]]  # id -> label and reference, of objects and models
    twice: set[int]  # ids of those that were found at two places
    left_out: list[str] = field(default_factory=list)  # names that were too many
    functions: list[str] = field(default_factory=list)  # labels of running ones

    def label_of(self, value: Any) -> str | None:
        """Under which label an object is looked at by itself."""
        entry = self.known.get(id(value))
        return entry[0] if entry is not None and entry[1]() is value else None

    def by_label(self) -> dict[str, Any]:
        """The objects that are alive."""
        return {label: found for label, found in ((label, ref()) for label, ref in self.known.values())
                if found is not None}  # fmt: skip


class _Finder:
    def __init__(self, most: int, covered: Covered) -> None:
        self._most, self._left, self._seen = most, covered.has, set[int]()
        self._saved = covered.is_one
        self._root: str | None = None
        self.looked: list[tuple[str, Any]] = []
        self.found = Found([], {}, set())

    def add(self, space: Space, depth: int = 0, functions: Functions | None = None) -> None:
        space.root = self._root
        held = space.values(functions or {})
        wanted = [name for name in space.known if not self._left(held[name])]
        fixed = [name for name in wanted if values.is_fixed(held[name]) or type(held[name]) is FunctionType]
        others = [name for name in wanted if name not in fixed]
        most = max(self._most, 0)
        space.known = fixed + others[:most]
        self.found.left_out += [space.label + name for name in others[most:]]
        self._most -= len(others[:most])
        self.found.spaces.append(space)
        for name, value in list(held.items()):
            if values.is_variable(name):
                self._look(f"{space.label}{name}", value, depth)

    def _look(self, label: str, value: Any, depth: int) -> None:
        """For what `value` has, and what has values of its own by that."""
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        kind = type(value)
        is_model = isinstance(value, torch.nn.Module)
        if kind not in values.PLAIN:
            self.looked.append((label, value))
        if kind in values.PLAIN or (self._left(value) and not is_model):
            return
        if id(value) in self._seen:
            self.found.twice.add(id(value))
        elif is_model:
            self._of_model(label, value, depth)
        elif kind is FunctionType:
            self.bound(f"{label}().", value)
            self._of_function(label, value)
        elif kind is ContextVar:
            self._seen.add(id(value))
            self.add(OfContextVariable(f"{label}.", value), depth + 1)
        elif kind is threading.local:
            self._seen.add(id(value))
            self.add(OfThread(f"{label}.", value), depth + 1)
        elif isinstance(value, type):
            if depth <= 1 and frames.is_users_module(value.__module__):
                self._seen.add(id(value))
                if not issubclass(value, Enum):
                    self.add(OfClass(f"{label}.", value), depth + 1)
                for name, member in value.__members__.items() if issubclass(value, Enum) else ():
                    self.add(OfObject(f"{label}.{name}.", member), _DEPTH)
        elif depth > _DEPTH or len(self.found.spaces) > _MOST_SPACES:
            return
        elif kind is ModuleType:
            if _is_loose(value):
                self._seen.add(id(value))
                self.add(Space(f"{label}.", value.__dict__), depth + 1)
        elif objects.is_users_object(value):
            self._seen.add(id(value))
            self.found.known[id(value)] = f"{label}.", reference(value)
            self.add(OfObject(f"{label}.", value), depth + 1)
        elif kind is MappingProxyType:
            self._parts(label, value, depth)
        elif kind is property:
            self._parts(label, {"get": value.fget, "set": value.fset}, depth)
        elif kind in values.ITERATORS or values.is_next(value):
            self._seen.add(id(value))
            reduced = values.reduced(value.__self__ if values.is_next(value) else value)
            self._parts(label, dict(enumerate(reduced[1])) if reduced is not None else {}, depth)
        elif isinstance(value, torch.Tensor):
            self._seen.add(id(value))
            self.callables(label, hooks_of_tensor(value))
        elif callable(value) and not foreign.is_librarys_class(kind):
            self._of_callable(label, value, depth)
        elif foreign.is_librarys_class(kind) and not foreign.goes_on_by_itself(value):
            self._seen.add(id(value))
            self._parts(label, objects.attributes(value), depth)
        elif kind in values.HOLDERS and kind not in (set, frozenset) and len(value) <= _MOST_HELD:
            self._seen.add(id(value))
            if isinstance(value, dict):
                self._parts(f"{label}, key", dict(enumerate(value)), depth)
            self._parts(label, value if isinstance(value, dict) else dict(enumerate(value)), depth)

    def _parts(self, label: str, parts: Mapping[Any, Any], depth: int) -> None:
        for key, part in list(parts.items()):
            of = f"{label}[{key!r}]" if type(key) in values.PLAIN else f"{label}[{key}]"
            if isinstance(part, torch.nn.Module) and id(part) not in self._seen and not self._left(part):
                self._of_model(of, part, depth + 1, f"{of}:model")
                self.add(Space(f"{of}:", {"model": part}), _DEPTH)
            else:
                self._look(of, part, depth + 1)

    def _of_callable(self, label: str, value: Any, depth: int) -> None:
        """A method's object, and what a functools.partial has bound, may be nowhere else."""
        self._seen.add(id(value))
        if type(value) is caches.KIND:
            self._of_cache(label, value, depth)
            return
        space = OfCallable(f"{label}.", value)
        if space.known:
            self.add(space, _DEPTH)
        for name, part in space.parts.items():
            self._look(f"{label}.{name}", part, depth + 1)

    def _of_cache(self, label: str, cache: Any, depth: int) -> None:
        if caches.is_users(cache) and not caches.is_left(cache):
            self._look(label, cache.__wrapped__, depth)
            for number, entry in enumerate(caches.entries(cache)):
                self._look(f"{label}()[{number}]", entry.value, depth + 1)

    def _of_function(self, label: str, function: FunctionType) -> None:
        """A function may have attributes, and lists, generators or objects as defaults."""
        if not frames.is_users(function.__code__.co_filename, function.__module__):
            return
        if function.__dict__:
            self.add(Space(f"{label}.", function.__dict__), _DEPTH)
        defaults = *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()
        if any(type(value) is not tuple and not values.is_fixed(value) for value in defaults):
            self.add(OfDefaults(f"{label}(default).", function), 1)

    def _of_model(self, label: str, model: torch.nn.Module, depth: int, path: str | None = None) -> None:
        """path: of a variable that has it; None: `label` is that."""
        self._seen.add(id(model))
        self.found.known[id(model)] = path or label, reference(model)
        for path, part in model.named_modules():
            self.hooks(f"{label}.{path}" if path else label, part)
            self.scripted(f"{label}.{path}." if path else f"{label}.", part)
            if objects.has_more(type(part)) and not self._saved(part):
                self.add(OfObject(f"{label}.{path}." if path else f"{label}.", part), depth + 1)

    def hooks(self, label: str, module: torch.nn.Module) -> None:
        """The script's own on a module."""
        self.callables(label, hooks_of(module))

    def callables(self, label: str, hooks: Iterable[Any]) -> None:
        """Hooks: an object that is called, or a method's, may be nowhere else."""
        for number, hook in enumerate(hooks):
            self._look(f"{label}, hook {number}", hook, 0)

    def scripted(self, label: str, module: torch.nn.Module) -> None:
        if is_scripted(module):
            self.add(OfScripted(label, module), _DEPTH)

    def object(self, label: str, obj: Any, left_out: frozenset[str]) -> None:
        self._seen.add(id(obj))
        self.found.known[id(obj)] = label, reference(obj)
        self.add(OfLibrary(label, obj.__dict__, left_out), _DEPTH)

    def look(self, label: str, value: Any) -> None:
        """What is in no variable."""
        self._look(label, value, 1)

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
            self.add(Bound(label, fresh), 1)


def hooks_of_stepped(owner: Any) -> list[Any]:
    """Of an optimizer, and the functions that a scheduler asks."""
    if isinstance(owner, torch.optim.Optimizer):
        names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")  # a wrapper of a library may have none
        return [hook for name in names for hook in getattr(owner, name, {}).values()]
    return list(getattr(owner, "lr_lambdas", ()))


def _is_loose(module: ModuleType) -> bool:
    """Whether nobody finds it by its name and looks at it: the script has made it, or loaded it from a file."""
    file = getattr(module, "__file__", None)
    if sys.modules.get(module.__name__) is module and (file is not None or module.__spec__ is not None):
        return False
    return module.__name__ != "__main__" and (file is None or frames.is_users(file, module.__name__))


def found_spaces(most: int, covered: Covered, of_functions: Collection[str] | None = None) -> Found:
    """Those that the script has now. most: names, all together.  covered: what is not looked into.

    of_functions: labels of running functions to be looked at; None: all.
    """
    finder = _Finder(most, covered)
    for label, (referred, left_out) in _of_libraries.items():  # first: a variable of the script may have it, too
        obj = referred()
        if obj is not None:
            finder.object(label, obj, left_out)
    names = sorted(frames.users_modules(), key=lambda name: name != "__main__")
    for name in names[:1] if "__main__" in names else []:
        finder.add(Space("", sys.modules[name].__dict__))
    with running() as functions:
        for label, frame in reversed(functions.items()):  # what several have belongs to the one that ends last
            if of_functions is None or label in of_functions:
                finder.enter(label)
                finder.found.functions.append(label)
                finder.add(OfFunction(label, frame), functions=functions)
    finder.enter(None)
    for make in more:
        finder.add(make(), _DEPTH)
    for number, loader in enumerate(_loaders):
        for path, part in reach.objects(loader, _MOST_HELD):
            if objects.is_users_object(part):
                finder.look(f"data {number}, {path}", part)
    finder.callables("all modules", [hook for held in _OF_ALL for hook in held.values()])
    for name, owner in found.made():
        finder.callables(name, hooks_of_stepped(owner))
    for number, module in enumerate(switched.left_out()):
        finder.hooks(f"module {number} of the model", module)
        finder.scripted(f"module {number} of the model.", module)
    for make in (OfTorch, OfThisThread, OfTensors, OfEnvironment, OfProcess, OfSignals, OfUmask):
        finder.add(make(), _DEPTH)
    for name in names:
        if name != "__main__":
            finder.add(Space(f"{name}:", sys.modules[name].__dict__))
    given = OfGiven(finder.looked)
    finder.add(given, _DEPTH)
    finder.found.left_out += given.left_out
    return finder.found
