"""Variables as they are now, by path: the label of their place and their name.

live = Live(spaces)
seen = live.look()                      # once: to look at running functions takes a while
for path, value in live.known(seen): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from typing import Any

from ff_core.state.space import Functions, Space, running
from ff_core.state.still import Still

Seen = list[tuple[Space, Mapping[str, Any]]]
"""Places, and what is there: name -> value."""


class Live:
    """spaces: all places, by label."""

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self.spaces = spaces
        self._still: dict[str, Still] = {}  # by label; made when so many had changed:
        self._still_of = -1

    def add(self, space: Space) -> None:
        """One more."""
        self.spaces = {**self.spaces, space.label: space}
        self._still_of = -1

    def remove(self, label: str) -> None:
        self.spaces = {of: space for of, space in self.spaces.items() if of != label}
        self._still_of = -1

    def look(self, functions: Functions | None = None) -> Seen:
        """Without what belongs to a function that has returned. functions: those that run."""
        with running() if functions is None else nullcontext(functions) as at:
            alive = [space for space in self.spaces.values() if space.root is None or space.root in at]
            return [(space, space.values(at)) for space in alive]

    def known(self, seen: Seen) -> Iterator[tuple[str, Any]]:
        """Those that were there at first."""
        for space, held in seen:
            yield from ((space.label + name, held[name]) for name in space.known if name in held)

    def moving(self, seen: Seen, fixed: Mapping[str, Any], changed: set[str]) -> Iterator[tuple[str, Any]]:
        """Those, but for the ones in `fixed` that still have the value there: one that never changes in place.

        changed: paths that are given anyway; their number only grows.
        """
        if self._still_of != len(changed):
            self._still_of = len(changed)
            at_rest = {path: value for path, value in fixed.items() if path not in changed}
            for label, space in self.spaces.items():
                names = {name: at_rest[label + name] for name in space.known if label + name in at_rest}
                self._still[label] = Still(space.known, names)
        for space, held in seen:
            names_now = self._still[space.label].to_look_at(held)
            yield from ((space.label + name, held[name]) for name in names_now)

    def new(self, seen: Seen) -> Iterator[tuple[str, Any]]:
        """Under names that were not there at first."""
        for space, held in seen:
            if not space.all_known.issuperset(held):
                names = [name for name in held.keys() - space.all_known if space.is_name(name)]
                yield from ((space.label + name, held[name]) for name in names)

    def all(self) -> dict[str, Any]:
        """Path -> value."""
        seen = self.look()
        return dict(chain(self.known(seen), self.new(seen)))
