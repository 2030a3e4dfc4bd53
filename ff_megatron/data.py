"""Data iterators that can go back: micro-batches since the oldest version that may be needed are kept.

What is handed out again is not loaded again. So what loading did then is done again with it: random numbers that it
drew, and what it changed in the data set, as a count or a generator of its own.

Megatron's loaders yield micro-batches in an order that consumed samples fix. A survivor goes back by handing out kept
ones; in a newcomer the loaders are built at the dead rank's consumed samples, and positions are counted on from there.
Where they begin is not left to Megatron: it takes an iteration without evaluations before it for an old checkpoint.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import batch, loaded_with, loading, rng, variables
from ff_core.state.source import inside

log = logging.getLogger("ff_megatron")
WRITTEN = (
    "micro-batch %d is needed again, but the script wrote into its tensors: copy a micro-batch before changing it in "
    "place"
)


@dataclass(slots=True)
class Kept:
    """An item that was handed out, and what was there behind its loading: random states, what the loader's objects
    had, and the place in the data."""

    item: Any
    random: dict[str, Any]
    loaded: loaded_with.Taken | None
    place: Any = None
    marks: tuple[int, ...] = ()

    def is_written(self) -> bool:
        return batch.marks(self.item) != self.marks


class Rewindable:
    """An iterator over `source`, whose first item has number `position`.

    loader: what loads the items in this process. None: nothing is known of it.  changed: called with what loading has
    changed in another process.
    """

    def __init__(
        self, source: Any, position: int = 0, handed_out: Callable[[Any], None] = lambda item: None, loader: Any = None,
        changed: Callable[[str], None] = lambda what: None,
    ) -> None:  # fmt: skip
        self._source, self._handed_out, self._loader = source, handed_out, loader
        self._with = None if loader is None else loaded_with.LoadedWith(loader)
        self._kept: deque[Kept] = deque()
        self._copying, self._changed = False, changed
        self._first = position  # number of the first kept item
        self.position = position  # number of the next item

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        index = self.position - self._first
        if index == len(self._kept):
            with variables.of_process.loading():
                kept = self._load()
        else:
            kept = self._kept[index]
            rng.restore(kept.random)
            self.put(kept.loaded)
        self.position += 1
        self._handed_out(kept.item)
        # The containers are copied: core_v0.18's get_batch() writes into them.
        return batch.clone(kept.item) if self._copying else batch.share(kept.item)

    def _load(self) -> Kept:
        with inside():
            kept = self.load()
        if isinstance(kept.item, loading.Loaded):
            if kept.item.changed is not None:
                self._changed(kept.item.changed)
            kept.item = kept.item.data
        kept.marks = batch.marks(kept.item)
        self._kept.append(kept)
        return kept

    def load(self) -> Kept:
        """The next item of the source. Raises StopIteration."""
        item = next(self._source)
        return Kept(item, rng.capture(), None if self._with is None else self._with.now(loaded=True))

    def put(self, loaded: loaded_with.Taken | dict[str, Any] | None) -> None:
        """What the loader's objects had."""
        if self._loader is not None:
            loaded_with.put(self._loader, loaded.value() if isinstance(loaded, loaded_with.Taken) else loaded)

    def now(self) -> dict[str, Any] | None:
        """What the loader's objects have, for `put` in another process."""
        return None if self._with is None else self._with.now().value()

    def seek(self, position: int) -> None:
        """Make item `position` the next one. Raises FailoverError if it is not kept any more."""
        if position < self._first:
            raise FailoverError(
                f"micro-batch {position} is needed again, but the data of this process begins at {self._first}"
            )
        self.position = min(position, self._first + len(self._kept))
        while self.position < position:
            self._load()
            self.position += 1
        # Variables of the script that have one of their tensors are put back next, perhaps by writing into it.
        for number in range(position - self._first, len(self._kept)):
            kept = self._kept[number]
            if kept.is_written():
                raise FailoverError(WRITTEN % (self._first + number))
            kept.item = batch.clone(kept.item)
            kept.marks = batch.marks(kept.item)

    def forget(self, before: int) -> None:
        """Items before number `before` will not be needed again."""
        while self._kept and self._first < min(before, self.position):
            self._kept.popleft()
            self._first += 1

    def settle(self) -> None:
        """An iteration is complete: see whether it has written into what it was given."""
        given = islice(self._kept, self.position - self._first)
        if not self._copying and any(kept.is_written() for kept in given):
            log.warning("the script writes into its micro-batches; from now on it gets copies of them")
            self._copying = True


class Positions:
    """At which item iterators stood with each version."""

    def __init__(self) -> None:
        self._at: dict[int, list[int]] = {}  # version -> positions

    def sealed(self, sources: Sequence[Rewindable], version: int, oldest_needed: int) -> None:
        """`version` is complete; nobody goes back behind version `oldest_needed`."""
        for source in sources:
            source.settle()
        self._at[version] = [source.position for source in sources]
        self._at = {at: positions for at, positions in self._at.items() if at >= oldest_needed}
        if oldest_needed in self._at:
            for source, position in zip(sources, self._at[oldest_needed], strict=True):
                source.forget(position)


def replay_nothing(iterator: Any) -> None:
    """iterator: a RerunDataIterator, whose source goes elsewhere."""
    iterator.replaying, iterator.saved_microbatches, iterator.replay_pos = False, [], 0


class Data:
    """All data iterators of one process, in the order in which they were built.

    handed_out: called with each micro-batch.  changed: as of Rewindable.
    """

    def __init__(
        self, handed_out: Callable[[Any], None] = lambda item: None, changed: Callable[[str], None] = lambda what: None
    ) -> None:
        self._handed_out, self._changed = handed_out, changed
        self._wrapped: list[Any] = []  # RerunDataIterator
        self._sources: list[Rewindable] = []
        self._firsts: list[int] = []  # position at which each began
        self._samplers: list[tuple[int, int] | None] = []  # samples at which loaders began, of a micro-batch of all
        self._loaders: list[Any] = []
        self._samples: list[int | None] = []  # in a newcomer: at which they are to begin
        self._positions = Positions()

    def begin_at(self, samples: list[int | None]) -> None:
        """In a newcomer, before its loaders are built: `samples()` of the version at which they are to begin."""
        self._samples = samples

    def loader(self, make: Callable[[int], Any], consumed: int) -> Any:
        """A data loader: `make(consumed)`, or in a newcomer with the samples that the dead rank had consumed of it."""
        number = len(self._samplers)
        known = self._samples[number] if number < len(self._samples) else None
        made = make(consumed if known is None else known)
        if made is not None:
            sampler = getattr(made, "batch_sampler", None)
            began = getattr(sampler, "consumed_samples", None)
            size = getattr(sampler, "micro_batch_times_data_parallel_size", None)
            self._samplers.append(None if began is None or size is None else (began, size))
            self._loaders.append(made)
            if getattr(made, "num_workers", 0):
                loading.watch_processes(made)
        return made

    def samples(self) -> list[int | None]:
        """Consumed of each loader; None of one that begins elsewhere, or if somebody else has made some."""
        if len(self._samplers) != len(self._sources):
            return []
        began = zip(self._samplers, self._sources, self._firsts, strict=True)
        return [at and at[0] + (source.position - first) * at[1] for at, source, first in began]

    def track(self, iterators: Any, positions: list[int] | None) -> None:
        """Make `iterators` (of build_train_valid_test_data_iterators: RerunDataIterator, None, lists) rewindable.

        positions: in a newcomer, those that `positions()` gave in the version at which the loaders were built.
        """
        for iterator in _flat(iterators):
            number = len(self._sources)
            start = 0 if positions is None else positions[number]
            source = self._rewindable(iterator.iterable, start, number)
            iterator.iterable = source
            self._wrapped.append(iterator)
            self._sources.append(source)
            self._firsts.append(start)

    def _rewindable(self, source: Any, start: int, number: int) -> Rewindable:
        loader = self._loaders[number] if number < len(self._loaders) else None
        if getattr(loader, "num_workers", 0):
            loader = None  # it loads in other processes
        if loader is not None:
            variables.of_process.loads(loader, again=False)
        return Rewindable(source, start, self._handed_out, loader, self._changed)

    def loaded(self) -> list[dict[str, Any] | None]:
        """What the objects of each iterator's loader have."""
        return [source.now() for source in self._sources]

    def put(self, loaded: list[dict[str, Any] | None]) -> None:
        """`loaded()` of another process of the same rank, or of this one earlier."""
        for source, had in zip(self._sources, loaded, strict=True):
            source.put(had)

    def positions(self) -> list[int]:
        """Number of the next micro-batch, per iterator."""
        return [source.position for source in self._sources]

    def seek(self, positions: list[int]) -> None:
        """Go to `positions`, in this or another process's life of the same rank. Raises FailoverError."""
        for iterator, source, position in zip(self._wrapped, self._sources, positions, strict=True):
            replay_nothing(iterator)
            source.seek(position)

    def sealed(self, version: int, oldest_needed: int) -> None:
        """`version` is complete; nobody goes back behind version `oldest_needed`."""
        self._positions.sealed(self._sources, version, oldest_needed)


def _flat(iterators: Any) -> Iterator[Any]:
    if isinstance(iterators, (list, tuple)):
        for item in iterators:
            yield from _flat(item)
    elif iterators is not None:
        yield iterators
