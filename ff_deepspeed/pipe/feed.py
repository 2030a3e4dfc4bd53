"""The data of a pipeline: DeepSpeed takes the micro-batches itself, within train_batch() and eval_batch().

Only ranks of the first and of the last stage take any. `Batches` keeps those of one call, so that the call can be made
again; `PipelineFeed` knows where the training data stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import batch as batches_
from ff_core.state import covered, loops, rng
from ff_core.state.source import Source, resolved
from ff_deepspeed.feed import Feed
from ff_deepspeed.tracked import Tracked

REMEDY = (
    "Give it the same iterator in each step, as iter(deepspeed.utils.RepeatingLoader(loader)); or let FFTrainer hand "
    "the batches out: `for batches in ff_deepspeed.batches(engine, loader)`, inside `with ff_deepspeed.iteration()`, "
    "and there engine.train_batch(iter(batches))"
)
ITEM = (
    "{line}: train_batch() is given a {kind}: the script takes the batches from its loader itself, and after a failure "
    "a replacement could not find its batch again. " + REMEDY
)
ANOTHER = (
    "{line}: train_batch() is given another iterator than in the step before, not one over the same DataLoader: after "
    "a failure a replacement could not find its batch again. " + REMEDY
)
WRITTEN = "the script wrote into a micro-batch (a loss function that changes its labels in place?)"
OTHER_DATA = (
    "the replacement of a dead rank gives train_batch() other data than that rank did: {mine} instead of {theirs}. "
    + REMEDY
)
ITEMS: tuple[type, ...] = (type(iter([])), type(iter(())))


@dataclass(slots=True)
class _Kept:
    batch: Any
    rng_after: dict[str, Any]
    marks: tuple[int, ...]


class Batches:
    """An iterator over what `source` gives, which can begin again. note: told of each micro-batch that is taken."""

    def __init__(self, source: Iterator[Any] | None, note: Callable[[Any], None] | None = None) -> None:
        self._source = source
        self._note = note
        self._kept: list[_Kept] = []
        self._next = 0

    def again(self) -> Batches:
        """Begin with the first one."""
        self._next = 0
        return self

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Any:
        if self._next == len(self._kept):
            assert self._source is not None, "asked for on a stage that takes no data"
            batch = next(self._source)
            self._kept.append(_Kept(batch, rng.capture(), batches_.marks(batch)))
        else:
            rng.restore(self._kept[self._next].rng_after)
        kept = self._kept[self._next]
        self._next += 1
        if self._note is not None:
            self._note(kept.batch)
        return batches_.share(kept.batch)

    def obstacle(self) -> str | None:
        """Why they cannot be taken again, None if they can."""
        return WRITTEN if any(batches_.marks(kept.batch) != kept.marks for kept in self._kept) else None


class PipelineFeed(Feed):
    """Where the training data stand: of the one iterator that train_batch() takes from.

    | the iterator | its place |
    | --- | --- |
    | over a DataLoader, or DeepSpeed's RepeatingLoader around one | that of the loader's own iterator |
    | any other | items that it gave; a replacement takes as many |
    """

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self._engine = engine
        self.loops: list[loops.Place] = []  # around the last train_batch()
        self._iterator: Any = None
        self._any: Source | None = None  # of an iterator over no known loader

    def use(self, iterator: Any, line: str) -> Iterator[Any] | None:
        """train_batch() at `line` takes from `iterator`; None on a stage that takes nothing. Returns what to ask.

        Raises UnsupportedError if a replacement could not find its place there.
        """
        if iterator is None:
            return None
        if iterator is not self._iterator:
            if isinstance(iterator, ITEMS):
                raise UnsupportedError(ITEM.format(line=line, kind=type(iterator).__qualname__))
            if self._iterator is not None and (self._any is not None or not self.is_training(tracked_of(iterator))):
                raise UnsupportedError(ANOTHER.format(line=line))
            covered.feeds(iterator)
            tracked = tracked_of(iterator)
            self._iterator, self._training = iterator, None if tracked is None else tracked.loader
            self._any = Source(iterator, lambda: iterator) if tracked is None else None
        return iterator if self._any is None else _Asking(self._any)

    def is_training(self, tracked: Tracked | None) -> bool:
        return tracked is not None and tracked.loader == self._training

    def position(self, asked: Tracked | None = None) -> dict[str, Any]:
        """Where the script stands: plain values."""
        at = {"loader": None, "consumed": self._engine.global_steps}  # these tell two versions apart
        return {**at, "place": self.place(), "loops": self.loops}

    def place(self) -> dict[str, Any] | None:
        """Behind what was taken so far: plain values."""
        if self._iterator is None:
            return None
        if self._any is not None:
            return {"loader": None, **resolved(self._any.position())}
        tracked = tracked_of(self._iterator)
        assert tracked is not None
        return tracked.place()

    def go_to_place(self, place: dict[str, Any] | None) -> None:
        """In a replacement. Random states stay as they are. Raises FailoverError."""
        mine = self.place()
        if mine is None and place is None:
            return
        if mine is None or place is None or mine["loader"] != place["loader"]:
            raise FailoverError(OTHER_DATA.format(mine=_named(mine), theirs=_named(place)))
        with rng.kept():
            if self._any is None:
                tracked = tracked_of(self._iterator)
                assert tracked is not None
                tracked.go_to(place)
            elif self._any.consumed > place["consumed"]:
                raise FailoverError(f"train_batch() takes from {_named(mine)}, which cannot go back. {REMEDY}")
            else:
                self._any.seek(place)

    def close(self) -> None:
        tracked = None if self._iterator is None else tracked_of(self._iterator)
        if tracked is not None:
            tracked.source.release()


class _Asking:
    """next() of a `Source`."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> _Asking:
        return self

    def __next__(self) -> Any:
        return self._source.next()


def tracked_of(iterator: Any) -> Tracked | None:
    """The iterator over a data loader that `iterator` is, or takes from now; None if that cannot be seen."""
    from deepspeed.runtime.dataloader import RepeatingLoader

    if isinstance(iterator, RepeatingLoader):
        iterator = iterator.data_iter
    return iterator if isinstance(iterator, Tracked) else None


def _named(place: dict[str, Any] | None) -> str:
    if place is None:
        return "nothing"
    return "an iterator of the script's own" if place["loader"] is None else f"data loader number {place['loader'] + 1}"
