"""Data iterators that can go back: micro-batches since the oldest version that may be needed are kept.

Megatron's loaders yield micro-batches in an order that consumed samples fix. A survivor goes back by handing out kept
ones; in a newcomer the loaders are built at the dead rank's consumed samples, and positions are counted on from there.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ff_core.errors import FailoverError


class Rewindable:
    """An iterator over `source`, whose first item has number `position`."""

    def __init__(self, source: Any, position: int = 0, handed_out: Callable[[Any], None] = lambda item: None) -> None:
        self._source, self._handed_out = source, handed_out
        self._kept: deque[Any] = deque()
        self._first = position  # number of the first kept item
        self.position = position  # number of the next item

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        index = self.position - self._first
        if index == len(self._kept):
            self._kept.append(next(self._source))
        self.position += 1
        self._handed_out(self._kept[index])
        item = self._kept[index]
        return copy.copy(item) if isinstance(item, (dict, list)) else item  # core_v0.18's get_batch() writes into it

    def seek(self, position: int) -> None:
        """Make item `position` the next one. Raises FailoverError if it is not kept any more."""
        if position < self._first:
            raise FailoverError(
                f"micro-batch {position} is needed again, but the data of this process begins at {self._first}"
            )
        self.position = min(position, self._first + len(self._kept))
        while self.position < position:
            self._kept.append(next(self._source))
            self.position += 1

    def forget(self, before: int) -> None:
        """Items before number `before` will not be needed again."""
        while self._kept and self._first < min(before, self.position):
            self._kept.popleft()
            self._first += 1


class Data:
    """All data iterators of one process, in the order in which they were built.

    handed_out: called with each micro-batch.
    """

    def __init__(self, handed_out: Callable[[Any], None] = lambda item: None) -> None:
        self._handed_out = handed_out
        self._wrapped: list[Any] = []  # RerunDataIterator
        self._sources: list[Rewindable] = []
        self._at: dict[int, list[int]] = {}  # version -> positions

    def track(self, iterators: Any, positions: list[int] | None) -> None:
        """Make `iterators` (of build_train_valid_test_data_iterators: RerunDataIterator, None, lists) rewindable.

        positions: in a newcomer, those that `positions()` gave in the version at which the loaders were built.
        """
        for iterator in _flat(iterators):
            number = len(self._sources)
            start = 0 if positions is None else positions[number]
            source = Rewindable(iterator.iterable, start, self._handed_out)
            iterator.iterable = source
            self._wrapped.append(iterator)
            self._sources.append(source)

    def positions(self) -> list[int]:
        """Number of the next micro-batch, per iterator."""
        return [source.position for source in self._sources]

    def seek(self, positions: list[int]) -> None:
        """Go to `positions`, in this or another process's life of the same rank. Raises FailoverError."""
        for iterator, source, position in zip(self._wrapped, self._sources, positions, strict=True):
            iterator.replaying, iterator.saved_microbatches, iterator.replay_pos = False, [], 0
            source.seek(position)

    def sealed(self, version: int, oldest_needed: int) -> None:
        """`version` is complete; nobody goes back behind version `oldest_needed`."""
        self._at[version] = self.positions()
        for old in sorted(v for v in self._at if v < oldest_needed):
            del self._at[old]
        oldest = self._at.get(oldest_needed)
        if oldest is not None:
            for source, position in zip(self._sources, oldest, strict=True):
                source.forget(position)


def _flat(iterators: Any) -> Iterator[Any]:
    if isinstance(iterators, (list, tuple)):
        for item in iterators:
            yield from _flat(item)
    elif iterators is not None:
        yield iterators
