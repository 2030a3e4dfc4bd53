"""Modules of the script that it imports while it trains: what they have was not there when its variables were found.

modules = Modules()
modules.new()           # places (`ff_core.state.space`) of those that have come since
modules.needed(labels)  # in a replacement: of those that the dead rank had; they are imported
modules.undone(labels)  # in a survivor: labels of those that the version did not have; they are forgotten
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection
from types import FunctionType

from ff_core.state import frames
from ff_core.state.space import Space

_BEGIN, _END = "imported ", "::"  # what is new there is there to stay


class Modules:
    """Of one process."""

    def __init__(self) -> None:
        self._known = set(sys.modules)
        self._late: dict[str, str] = {}  # label -> name

    def new(self) -> list[Space]:
        """Each once."""
        if len(sys.modules) == len(self._known):
            return []
        names = sorted(set(frames.users_modules()) - self._known)
        self._known = set(sys.modules)
        self._late.update((f"{_BEGIN}{name}{_END}", name) for name in names)
        return [_OfModule(name) for name in names]

    def needed(self, labels: Collection[str]) -> list[Space]:
        """What cannot be imported is left out."""
        for label in labels:
            if label.startswith(_BEGIN) and label not in self._late:
                try:
                    importlib.import_module(label.removeprefix(_BEGIN).removesuffix(_END))
                except ImportError:
                    continue
        return self.new()

    def undone(self, labels: Collection[str]) -> list[str]:
        """Labels of those that are not in `labels`: the script imports them anew."""
        gone = [label for label in self._late if label not in labels]
        for label in gone:
            sys.modules.pop(self._late.pop(label), None)
        self._known &= sys.modules.keys()
        return gone


class _OfModule(Space):
    def __init__(self, name: str) -> None:
        super().__init__(f"{_BEGIN}{name}{_END}", sys.modules[name].__dict__)
        self.known = [name for name in self.known if not isinstance(self._held[name], (FunctionType, type))]
