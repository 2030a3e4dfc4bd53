"""Iterators whose place can be taken and set, in this process and in another one: an adapter brings such a class."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any


class Placed(ABC):
    """An iterator that a script has. name: the same in another process; of several with one name the newest counts."""

    def __init__(self, name: str) -> None:
        alive[name] = self

    @abstractmethod
    def goes_on_by_itself(self) -> bool:
        """Training is driven by it: whoever does that knows its place."""

    @abstractmethod
    def count(self) -> int:
        """How many items it has given."""

    @abstractmethod
    def place(self) -> Any:
        """Its place, see `ff_core.state.codec`."""

    @abstractmethod
    def go_to(self, place: Any) -> None:
        """Random generators stay as they are. Raises FailoverError if the place cannot be reached."""


def drives_training() -> bool:
    """Whether training is driven by one of them."""
    return any(each.goes_on_by_itself() for each in list(alive.values()))


alive: weakref.WeakValueDictionary[str, Placed] = weakref.WeakValueDictionary()
"""By name. A script may have one in no variable: zip() holds it."""
