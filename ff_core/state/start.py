"""What a script has where training begins: what was made on its way there, by every process that plays the rank.

That is where it asks for its first batch, if its batches come from a loader: a replacement takes over where the next
one is asked for, and has not seen the first one. What a script makes of its first batch is not there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ff_core.state import identities, values
from ff_core.state.began import Began
from ff_core.state.captured import Taker
from ff_core.state.covered import Covered
from ff_core.state.live import Live
from ff_core.state.room import Room
from ff_core.state.space import Space, running
from ff_core.state.spaces import Found, found_spaces
from ff_core.state.tensor_attributes import codes_of_script, used_in

MOST_BYTES = 8 << 20
"""Of tensors in variables, all together: they are encoded in every iteration."""
_UNCOUNTED = frozenset({"data", "numpy", "from_numpy", "storage", "untyped_storage", "data_ptr", "set_"})
"""Names of attributes that may write into a tensor, so that torch does not count it."""
MOST_NAMES = 2000  # variables and attributes that are looked at, all together


class Start:
    """covered: what somebody else saves.  found: places, and objects in them.  live: the places.  began: values.

    alive: the objects of found.  most: so many variables were looked for.
    ids: what is known by its id().  writes_uncounted: whether the script may write into tensors past torch's count.
    """

    most, writes_uncounted = 0, False

    def __init__(self, found: Found | None = None, covered: Covered | None = None) -> None:
        self.covered = Covered() if covered is None else covered
        self.found = Found([], {}, set()) if found is None else found
        self.began = Began(self.found.label_of)
        self._settle(self.found.spaces)

    def _settle(self, spaces: Collection[Space]) -> None:
        self.live = Live({space.label: space for space in spaces})
        labelled = self.found.by_label()
        self.alive: list[Any] = list(labelled.values())
        self.ids = identities.of(labelled)

    @classmethod
    def here(cls, of_functions: Collection[str] | None = None) -> Start:
        """of_functions: the script's running functions that are looked at; None: all."""
        covered = Covered()
        start = cls(found_spaces(MOST_NAMES, covered, of_functions), covered)
        start.most = MOST_NAMES
        start.writes_uncounted = not _UNCOUNTED.isdisjoint(used_in(codes_of_script()))
        room = Room(MOST_BYTES, values.MOST_ITEMS)
        taker = Taker(room, start.covered.has, start.found.label_of, share=False, ids=start.ids)
        start.began.take(start.live.known(start.live.look()), taker)
        return start

    def train(self) -> Start:
        """Training begins: without functions that do not run any more, such as one that made the batch or a generator
        around the loader, and without what turns out to be saved by somebody else."""
        self.covered = Covered()
        with running() as functions:
            self.found.functions = [label for label in self.found.functions if label in functions]
            spaces = [space for space in self.found.spaces if space.root is None or space.root in functions]
            gone = tuple({space.root for space in self.found.spaces if space.root and space.root not in functions})
            for space in self.found.spaces:
                if space.root in gone:
                    self.began.forget(space.label)
            self.found.known = {i: one for i, one in self.found.known.items() if not one[0].startswith(gone)}
            for space, held in ((space, space.values(functions)) for space in spaces):
                space.known = [name for name in space.known if not self.covered.has(held.get(name))]
        self._settle(spaces)
        return self
