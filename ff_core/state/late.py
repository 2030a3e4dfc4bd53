"""Modules of the script that it imports while it trains: what they and their classes have was not there when its
variables were found.

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
from types import FunctionType

from ff_core.state import frames
from ff_core.state.space import OfClass, Space

_BEGIN, _END = "imported ", "::"  # what is new there is there to stay


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
    module = sys.modules[name]
    yield _without_code(Space(f"{_BEGIN}{name}{_END}", module.__dict__))
    for value in list(vars(module).values()):
        if isinstance(value, type) and value.__module__ == name and not issubclass(value, Enum):
            yield _without_code(OfClass(f"{_BEGIN}{name} {value.__qualname__}{_END}", value))


def _without_code(space: Space) -> Space:
    held = space.values({})
    space.known = [name for name in space.known if not isinstance(held[name], (FunctionType, type))]
    return space
