"""Modules of the script that it imports while it trains: what they, their classes and functions have was not there when
its variables were found.

modules = Modules()
modules.new()           # places (`ff_core.state.space`) of those that have come since
modules.names()         # of all that have come: they belong to a version, also those that have no variables
modules.needed(names)   # in a replacement: places of those that the version had; they are imported
modules.undone(names)   # in a survivor: labels of those that the version did not have; they are forgotten
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType

from ff_core.state import frames
from ff_core.state.space import Bound, OfClass, OfDefaults, Space

_BEGIN, _END = "imported ", "::"  # what is new there is there to stay
_CODE = (FunctionType, BuiltinFunctionType, type)


class Modules:
    """Of one process."""

    def __init__(self) -> None:
        self._known = set(sys.modules)
        self._late: dict[str, list[str]] = {}  # name -> labels of its places

    def new(self) -> list[Space]:
        """Each once."""
        if len(sys.modules) == len(self._known):
            return []
        names = sorted(set(frames.users_modules()) - self._known)
        self._known = set(sys.modules)
        spaces = []
        for name in names:
            places = list(_places(name))
            self._late[name] = [space.label for space in places]
            spaces += places
        return spaces

    def names(self) -> list[str]:
        """Those of `new()`, all together."""
        return list(self._late)

    def needed(self, names: Collection[str]) -> list[Space]:
        """What cannot be imported is left out."""
        for name in names:
            if name not in sys.modules:
                try:
                    importlib.import_module(name)
                except ImportError:
                    continue
        return self.new()

    def undone(self, names: Collection[str]) -> list[str]:
        """Labels of those that are not in `names`: the script imports them anew."""
        gone = [name for name in self._late if name not in names]
        for name in gone:
            sys.modules.pop(name, None)
        self._known &= sys.modules.keys()
        return [label for name in gone for label in self._late.pop(name)]


def _places(name: str) -> Iterator[Space]:
    """The same ones in each process: what is there when the module has just been imported."""
    begin = f"{_BEGIN}{name}"
    held = vars(sys.modules[name])
    yield _without_code(Space(f"{begin}{_END}", held))
    for label, value in [(label, value) for label, value in held.items() if getattr(value, "__module__", None) == name]:
        if isinstance(value, FunctionType):
            yield from _of_function(f"{begin} {label}", value)
        elif isinstance(value, type) and not issubclass(value, Enum):
            yield _without_code(OfClass(f"{begin} {label}{_END}", value))
            for method, part in list(vars(value).items()):
                function = part.__func__ if isinstance(part, (staticmethod, classmethod)) else part
                if isinstance(function, FunctionType):
                    yield from _of_function(f"{begin} {label}.{method}", function)


def _of_function(label: str, function: FunctionType) -> Iterator[Space]:
    if not frames.is_users(function.__code__.co_filename, function.__module__):
        return  # made for a NamedTuple
    yield _without_code(Space(f"{label}{_END}", function.__dict__))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if cells:
        yield _without_code(Bound(f"{label}(){_END}", cells))
    if function.__defaults__ or function.__kwdefaults__:
        yield _without_code(OfDefaults(f"{label}(default){_END}", function))


def _without_code(space: Space) -> Space:
    held = space.values({})
    space.known = [name for name in space.known if not isinstance(held[name], _CODE)]
    return space
