"""The data loaders that an unmodified script iterates over, and what its training loader handed out.

Every iterator of a torch DataLoader or of engine.training_dataloader is `Tracked`. The training loader is the one
that was asked last before the first training forward. Loaders are told apart by the order in which they were made,
which is the same on every start of the script.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import rng
from ff_deepspeed import batch as batches_
from ff_deepspeed.source import Source

log = logging.getLogger("ff_deepspeed")

NOWHERE: dict[str, Any] = {"loader": None, "begun": None, "consumed": 0}
SKIPPED = (
    "the script of the replacement skipped batches that were consumed before the failure, and FFTrainer had done so "
    "already: let the script skip only `if not ff_core.is_replacement()`"
)


class Tracked:
    """An iterator over a data loader, given to the script instead of the loader's own. loader: the loader's number."""

    def __init__(
        self, number: int, loader: Any, make: Callable[[], Iterator[Any]], ask: Callable[[Tracked], Any]
    ) -> None:
        self.loader = number
        self.source = Source(loader, make)
        self._owner = loader
        self._ask = ask

    def __iter__(self) -> Tracked:
        return self

    def __next__(self) -> Any:
        return self._ask(self)

    def __len__(self) -> int:
        return len(self._owner)

    def position(self) -> dict[str, Any]:
        return {"loader": self.loader, **self.source.position()}


@dataclass(slots=True)
class Handed:
    """A batch that the training loader handed out. position: of its iterator afterwards."""

    batch: Any
    marks: tuple[int, ...]
    rng_after: dict[str, Any]
    position: dict[str, Any]


class Feed:
    """The batches of the training loader, numbered from 0 as they are handed out first."""

    def __init__(self) -> None:
        self._last: Tracked | None = None
        self._training: int | None = None
        self._handed: list[Handed] = []
        self._base = 0  # number of _handed[0]
        self._next = 0  # number of the batch to hand out next
        self._used = 0  # batches handed out before the last training forward
        self._position = NOWHERE  # after the last of them
        self._ends: dict[int, tuple[int, dict[str, Any]]] = {}  # version -> _used and _position when it was sealed
        self._copying = False
        self._gone_to: int | None = None  # newcomer: batches asked for since it went to its position

    def is_training(self, tracked: Tracked) -> bool:
        return tracked.loader == self._training

    def begin_training(self, version: int) -> None:
        """The first training call, after `version`: the loader that was asked last is the training loader."""
        if self._last is not None and self._training is None:
            self._training = self._last.loader
        # A batch that was asked for already belongs to the iteration that begins.
        self._used = max(self._next - 1, 0)
        self._ends[version] = (self._used, self._position)

    def next(self, tracked: Tracked) -> Any:
        """The next batch, or one that must be handed out again. Raises StopIteration."""
        if self.is_training(tracked) and self._next < self._base + len(self._handed):
            return self._hand_out_again()
        if self._training is None and tracked is not self._last:
            self._handed, self._base, self._next = [], 0, 0
        self._last = tracked
        if self._gone_to is not None:
            self._gone_to += 1
        item = tracked.source.next()
        if self._training is not None and not self.is_training(tracked):
            return item
        self._handed.append(Handed(item, batches_.marks(item), rng.capture(), tracked.position()))
        self._next += 1
        return batches_.clone(item) if self._copying else batches_.share(item)

    def _hand_out_again(self) -> Any:
        kept = self._handed[self._next - self._base]
        if batches_.marks(kept.batch) != kept.marks:
            raise FailoverError(
                "a batch is needed again after a failure, but the script wrote into its tensors: copy a batch before "
                "changing it in place"
            )
        self._next += 1
        rng.restore(kept.rng_after)
        return batches_.clone(kept.batch) if self._copying else batches_.share(kept.batch)

    def used(self) -> None:
        """A training forward begins. Raises FailoverError if a newcomer's script has skipped batches by itself."""
        if self._gone_to is not None and self._gone_to > 2:  # two: a loop that fetches one batch ahead
            raise FailoverError(SKIPPED)
        self._gone_to = None
        self._used = self._next
        if self._next > self._base:
            self._position = self._handed[self._next - self._base - 1].position

    def position(self) -> dict[str, Any]:
        """Where the data stands after the batches that training has used."""
        return dict(self._position)

    def seal(self, version: int) -> None:
        """`version` is complete: all batches used so far are behind it."""
        self._ends[version] = (self._used, self._position)
        if not self._copying and any(batches_.marks(kept.batch) != kept.marks for kept in self._handed):
            self._copying = True
            log.warning("the script writes into its batches; from now on they are copied before they are handed out")

    def forget(self, oldest_needed: int) -> None:
        """The job never goes back behind version `oldest_needed`."""
        for old in [version for version in self._ends if version < oldest_needed]:
            del self._ends[old]
        first = min((number for number, _ in self._ends.values()), default=self._base)
        drop = max(0, first - 1 - self._base)  # the last one used tells the position
        del self._handed[:drop]
        self._base += drop

    def can_return_to(self, version: int) -> bool:
        """Whether the batches that followed `version` can be handed out again."""
        return self._training is not None and version in self._ends and self._ends[version][0] >= self._base

    def return_to(self, version: int) -> None:
        """Hand out again what followed `version`."""
        self._used, self._position = self._ends[version]
        self._next = self._used

    def go_to(self, tracked: Tracked, position: dict[str, Any]) -> bool:
        """In a newcomer: bring `tracked` to `position`, if it is of that loader. False if not, or done before."""
        if self._gone_to is not None or position["loader"] != tracked.loader or position["begun"] is None:
            return False
        tracked.source.seek(position)
        self._gone_to, self._training, self._last = 0, tracked.loader, tracked
        self._handed, self._base, self._next, self._used = [], 0, 0, 0
        self._position = tracked.position()
        return True
