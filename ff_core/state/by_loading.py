"""Which of a script's variables loading an item changes: a cache, a buffer that a generator fills.

    found = ByLoading(spaces, loaders, mark)
    before = found.marks()
    ...                              # an item is loaded
    names = found.changed(before)

Looked at: what the loaders have, and what their functions ask for by a global name. Single numbers, texts and random
generators are none of these: what they are goes with each item (`ff_core.state.loaded_with`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ff_core.state import covered, generators, reach
from ff_core.state.space import OfObject, Space
from ff_core.state.values import PLAIN

_MOST = 256  # of a list or dict that is looked through
_TEXTS = frozenset({str})
_Names = frozenset[str] | None  # None: all


class ByLoading:
    """spaces: of the script's variables.  loaders: what loads.  mark: of a path's value, see Began.mark()."""

    def __init__(self, spaces: Iterable[Space], loaders: Sequence[Any], mark: Callable[[str, Any], Any]) -> None:
        self._mark = mark
        self._ids = set(covered.reached(loaders))
        coded = [part for loader in loaders for _, part in reach.objects(loader, _MOST, widely=True)
                 if isinstance(part, reach.CODED)]  # fmt: skip
        self._ids |= covered.reached(coded).keys()
        asked: dict[int, set[str]] = {}
        for part in coded:
            asked.setdefault(id(reach.globals_of(part)), set()).update(name for name, _ in reach.global_values(part))
        self._places = [(space, names) for space, names in self._found(spaces, asked) if names is None or names]

    def _found(self, spaces: Iterable[Space], asked: dict[int, set[str]]) -> Iterator[tuple[Space, _Names]]:
        for space in spaces:
            held = space.lasting()
            if isinstance(space, OfObject):
                if id(space.owner()) in self._ids:
                    yield space, None
            elif held is not None:
                names = {name for name in space.known if name in held and id(held[name]) in self._ids}
                yield space, frozenset(names | asked.get(id(held), set()))

    def marks(self) -> dict[str, Any]:
        """By path."""
        marks = {}
        for space, names in self._places:
            held = space.values({})
            for name in held if names is None else names & held.keys():
                if space.is_name(name) and not _goes_with_items(held[name]):
                    path = space.label + name
                    marks[path] = self._mark(path, held[name])
        return marks

    def changed(self, before: dict[str, Any]) -> dict[str, Any]:
        """Marks of what is another one than `before`."""
        return {path: mark for path, mark in self.marks().items() if path in before and before[path] != mark}


def _goes_with_items(value: Any) -> bool:
    if type(value) is dict:
        kinds = PLAIN.issuperset(map(type, value.values())) and _TEXTS.issuperset(map(type, value))
        return kinds and len(value) <= _MOST
    return type(value) in PLAIN or generators.is_generator(value)
