"""Places where nothing has been given another value since training began: modules and classes of a large script.

    quiet = Quiet(seen, began, changed)     # of places that `can_be_quiet()`
    quiet.is_quiet()                        # one look at all of them
    quiet.moving(look=True)                 # what may have changed in place: path and value
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import is_, methodcaller
from typing import Any

from ff_core.state.began import Began
from ff_core.state.space import Space
from ff_core.state.still import Still, resting

_values = methodcaller("values")


def can_be_quiet(space: Space, held: Mapping[str, Any], began: Began, changed: set[str]) -> bool:
    """Whether `space` is a place that lasts, and every name there has what it had at first. held: what is there."""
    if space.lasting() is None or not space.all_known.issuperset(held):
        return False
    return all(
        path not in changed and held.get(name) is began.fixed[path]
        for name, path in ((name, space.label + name) for name in space.known)
        if path in began.fixed
    )


class Quiet:
    """seen: places that can be quiet, and what they have."""

    def __init__(self, seen: list[tuple[Space, Mapping[str, Any]]], began: Began, changed: set[str]) -> None:
        self._seen = [(space, held, list(held.values())) for space, held in seen]
        self._held = [held for _, held in seen]
        self._all = list(chain.from_iterable(values for _, _, values in self._seen))
        self._others: dict[str, Any] = {}
        at_rest: dict[str, Any] = {}
        for space, held in seen:
            names = [name for name in space.known if space.label + name not in began.fixed]
            self._others.update((space.label + n, held[n]) for n in names if not began.is_looked_at_itself(held[n]))
            at_rest.update((space.label + name, value) for name, value in resting(space, held, began, changed).items())
        self._still = Still(list(self._others), {}, at_rest)

    def is_quiet(self) -> bool:
        """Whether all names still have what they had. A loop within the interpreter."""
        try:
            same = all(map(is_, chain.from_iterable(map(_values, self._held)), self._all))
        except RuntimeError:  # another thread writes there
            return False
        return same and sum(map(len, self._held)) == len(self._all)

    def loud(self) -> list[str]:
        """Labels of the places where that is not so."""
        return [
            space.label
            for space, held, values in self._seen
            if len(held) != len(values) or not all(map(is_, list(held.values()), values))
        ]

    def moving(self, *, look: bool) -> list[tuple[str, Any]]:
        """Of a quiet one. look: at what is written through .data, too."""
        return [(path, self._others[path]) for path in self._still.to_look_at(self._others, closely=look)]
