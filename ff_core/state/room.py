"""How much of a script's variables is saved, and what is said of the rest. Used by `ff_core.state.captured`."""

from __future__ import annotations

from typing import Any

Taken = list[Any]
"""A value as it is saved: its kind, and what that needs. See `ff_core.state.captured`."""


class LostError(Exception):
    """A value that cannot be saved, or not be put back, and why. Never leaves this package."""


class TooLongError(LostError):
    """It has too many entries."""


class Room:
    """How much may still be taken. items: entries of lists and dicts."""

    def __init__(self, size: int, items: int) -> None:
        self.size, self.items = size, items

    def use(self, size: int = 0, items: int = 0) -> None:
        """Raises LostError, and uses nothing, where that is too much."""
        if size > self.size:
            raise LostError("too large to be saved in every iteration")
        if items > self.items:
            raise TooLongError("too many entries to be saved in every iteration")
        self.size -= size
        self.items -= items
