"""Whether a place in the data can be gone to without loading what lies before it.

A loader of torch with a map-style data set loads what its sampler says. So a replacement can let the sampler go on
alone, if loading has left nothing behind in the process that loads: no random number was drawn that nobody puts back,
and no number of the data set has changed. Each batch brings along whether that is so. The training process's own random
states are part of every version; those of a loader's processes are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from ff_core.state import data_state, generators, reach, rng

RANDOM = "the random state of the loader's processes"
MANY = "more objects than are looked at, perhaps"
UNKNOWN = "a state that cannot be seen, perhaps: the loader is no DataLoader of torch with a map-style data set"
PERSISTENT = "the processes of the loader, which are kept over epochs (persistent_workers=True), perhaps"
_MOST_ITEMS = 64  # of one list or dict: longer ones are data


@dataclass(slots=True)
class Loaded:
    """A batch on its way from the process that has loaded it. changed: what loading has changed there so far."""

    data: Any
    changed: str | None

    def pin_memory(self) -> Loaded:
        """Called by torch where the loader has pin_memory=True."""
        return Loaded(pin_memory(self.data), self.changed)


class Watch:
    """In the place of a loader's worker_init_fn and collate_fn, in each process that loads.

    Numbers are compared with those after the first batch: what is made when it is first used would be made anywhere.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._begin, self._collate = loader.worker_init_fn, loader.collate_fn
        self._root = {"dataset": loader.dataset, "collate_fn": loader.collate_fn}
        self._in_training_process = loader.num_workers == 0
        self._batches = 0
        self._random = 0  # digest of the random states when this process began to load
        self._numbers: dict[str, int] = {}  # path -> checksum, of generators too
        self._places: list[tuple[str, Any, str]] = []
        self._generators: list[tuple[str, Any]] = []
        self.changed: str | None = None

    def begin(self, worker: int) -> None:
        """As worker_init_fn."""
        if self._begin is not None:
            self._begin(worker)
        self._random = rng.digest()

    def collate(self, samples: Any) -> Loaded:
        """As collate_fn."""
        data = self._collate(samples)
        self._batches += 1
        if self.changed is None:
            self.changed = self._look()
        return Loaded(data, self.changed)

    def _look(self) -> str | None:
        if not self._in_training_process and rng.digest() != self._random:
            return RANDOM
        if self._batches == 1:
            return self._look_first()
        # All of them now and then only: there may be large arrays among them.
        found = self._all() if self._batches & (self._batches - 1) == 0 else {**self._numbers, **self._small()}
        return min(
            (path for path in {*found, *self._numbers} if found.get(path) != self._numbers.get(path)), default=None
        )

    def _all_numbers(self) -> Iterator[tuple[str, Any, Any]]:
        """In a process of the loader also what functions ask for by a global name. In the training process the script
        changes that, too, and it is put back for each item: see loaded_with."""
        return data_state.numbers(self._root, _MOST_ITEMS, widely=not self._in_training_process)

    def _look_first(self) -> str | None:
        self._numbers = self._all()
        places = self._all_numbers()
        self._places = [place for place in places if type(data_state.value_of(*place[1:])) in (int, float)]
        objects = list(reach.objects(self._root, _MOST_ITEMS, widely=not self._in_training_process))
        self._generators = [(path, part) for path, part in objects if generators.is_generator(part)]
        return MANY if len(objects) > reach.MOST else None

    def _all(self) -> dict[str, int]:
        found = {path: _of_number(owner, name) for path, owner, name in self._all_numbers()}
        parts = reach.objects(self._root, _MOST_ITEMS, widely=not self._in_training_process)
        return {**found, **{path: generators.digest(part) for path, part in parts if generators.is_generator(part)}}

    def _small(self) -> dict[str, int]:
        found = {path: _of_number(owner, name) for path, owner, name in self._places}
        return {**found, **{path: generators.digest(part) for path, part in self._generators}}


class Order:
    """In the place of a loader's batch sampler (or sampler): leaves out the first `skipped` items."""

    def __init__(self, inner: Any, skipped: int) -> None:
        self._inner, self._skipped = inner, skipped
        self._newest: _Skipping | None = None

    def __iter__(self) -> Iterator[Any]:
        self._newest = _Skipping(iter(self._inner), self._skipped)
        return self._newest

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def advance(self) -> None:
        """Leave them out now, under the random state of now, unless that is done. Raises StopIteration at the end."""
        if self._newest is not None:
            self._newest.advance()


class _Skipping:
    def __init__(self, inner: Iterator[Any], skipped: int) -> None:
        self._inner, self._left = inner, skipped

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.advance()
        return next(self._inner)

    def advance(self) -> None:
        while self._left:
            next(self._inner)
            self._left -= 1


def unseen(loader: Any) -> str | None:
    """What loading from `loader` may change without being seen; None if it is watched."""
    if (
        not isinstance(loader, DataLoader)
        or type(loader).__iter__ is not DataLoader.__iter__
        or type(loader)._get_iterator is not DataLoader._get_iterator
        or loader._dataset_kind != 0  # map-style
        or not getattr(loader, "in_order", True)
    ):
        return UNKNOWN
    return PERSISTENT if loader.num_workers and loader.persistent_workers else None


def watch_processes(loader: Any) -> None:
    """Have items of `loader` be `Loaded` for good, where that is possible. It has processes, and nobody will go back in
    it."""
    if isinstance(loader, DataLoader) and loader._dataset_kind == 0:  # map-style
        watch = Watch(loader)
        vars(loader).update(worker_init_fn=watch.begin, collate_fn=watch.collate)


@contextmanager
def watched(loader: Any, skipped: int) -> Iterator[Order | None]:
    """While an iterator over `loader` is made: its batches are `Loaded`, and it begins behind `skipped` items of its
    sampler. Nothing of that for a loader that is not watched (then skipped must be 0)."""
    if unseen(loader) is not None:
        yield None
        return
    watch = Watch(loader)
    sampler = "sampler" if loader.batch_sampler is None else "batch_sampler"
    order = Order(getattr(loader, sampler), skipped)
    changed = {"worker_init_fn": watch.begin, "collate_fn": watch.collate}
    if skipped:
        changed[sampler] = order  # type: ignore[assignment]
    held = vars(loader)
    before = {name: held[name] for name in changed}
    held.update(changed)
    try:
        yield order
    finally:
        held.update(before)


def _of_number(owner: Any, name: str) -> int:
    return data_state.checksum(data_state.value_of(owner, name))
