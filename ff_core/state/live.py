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

from ff_core.state.began import Began
from ff_core.state.quiet import Quiet, can_be_quiet
from ff_core.state.space import Functions, Space, running
from ff_core.state.still import Still, resting

Seen = list[tuple[Space, Mapping[str, Any]]]
"""Places, and what is there: name -> value."""


class Live:
    """spaces: all places, by label."""

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self.spaces = spaces
        self._quiet: Quiet | None = None  # made when so many had changed:
        self._quiet_of = -1
        self._loud: set[str] = set()  # labels of places that have not been quiet
        self._awake: list[Space] = []  # those that are not
        self._still: dict[str, Still] = {}  # by label, of these

    def add(self, space: Space) -> None:
        """One more."""
        self.spaces = {**self.spaces, space.label: space}
        self._quiet = None

    def remove(self, label: str) -> None:
        self.spaces = {of: space for of, space in self.spaces.items() if of != label}
        self._quiet = None

    def look(self, functions: Functions | None = None) -> Seen:
        """Without what belongs to a function that has returned. functions: those that run."""
        with running() if functions is None else nullcontext(functions) as at:
            alive = [space for space in self.spaces.values() if space.root is None or space.root in at]
            return [(space, space.values(at)) for space in alive]

    def known(self, seen: Seen) -> Iterator[tuple[str, Any]]:
        """Those that were there at first."""
        for space, held in seen:
            yield from ((space.label + name, held[name]) for name in space.known if name in held)

    def awake(self, began: Began, changed: set[str]) -> Seen:
        """As `look()`, without the places where all names have what they had at first.

        changed: paths that count as changed; their number only grows.
        """
        if self._quiet is None or self._quiet_of != len(changed):
            self._make_quiet(began, changed)
        elif not self._quiet.is_quiet():
            self._loud.update(self._quiet.loud())  # it will be given other values again
            self._make_quiet(began, changed)
        with running() as at:
            alive = [space for space in self._awake if space.root is None or space.root in at]
            return [(space, space.values(at)) for space in alive]

    def _make_quiet(self, began: Began, changed: set[str]) -> None:
        lasting = [(space, space.lasting()) for space in self.spaces.values() if space.label not in self._loud]
        held = [(space, names) for space, names in lasting if names is not None]
        quiet = [(space, names) for space, names in held if can_be_quiet(space, names, began, changed)]
        self._quiet, self._quiet_of = Quiet(quiet, began, changed), len(changed)
        labels = {space.label for space, _ in quiet}
        self._awake = [space for space in self.spaces.values() if space.label not in labels]
        self._still = {}

    def moving(self, awake: Seen, began: Began, changed: set[str], *, look: bool) -> Iterator[tuple[str, Any]]:
        """Those that may have changed. awake, changed: of `awake()`.  look: at what is written through .data, too."""
        assert self._quiet is not None
        yield from self._quiet.moving(look=look)
        for space, held in awake:
            still = self._still.get(space.label)
            if still is None:
                still = self._still[space.label] = _still(space, held, began, changed)
            yield from ((space.label + name, held[name]) for name in still.to_look_at(held, closely=look))

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


def _still(space: Space, held: Mapping[str, Any], began: Began, changed: set[str]) -> Still:
    paths = {name: space.label + name for name in space.known}
    fixed = {n: began.fixed[path] for n, path in paths.items() if path in began.fixed and path not in changed}
    return Still(space.known, fixed, resting(space, held, began, changed))
