"""Iterators that a script has in no variable: as zip() of two data loaders holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ff_core.state import placed
from ff_core.state.space import Functions, Space


class OfIterators(Space):
    """Those that are alive, by their names, but for what training is driven by. They are put back where they are."""

    def __init__(self) -> None:
        super().__init__("iterators:", dict(self.values({})))
        self._held = {}  # they live as long as the script has them

    def values(self, functions: Functions) -> Mapping[str, Any]:
        return {name: each for name, each in list(placed.alive.items()) if not each.goes_on_by_itself()}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        pass

    def remove(self, functions: Functions, name: str) -> None:
        pass
