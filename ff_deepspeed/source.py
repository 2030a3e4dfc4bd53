"""An iterator over a data loader whose position another process can go to.

Position = how the iterator was begun (states of the random generators when it was made and before its first item, as
samplers draw their seed at either time) and how many items were consumed. Going there means beginning from the same
states and consuming as many items; that is exact for shuffling samplers, loader processes and data sets with state of
their own. Items before the last ones may come out with other random numbers in them, as training used the same
generators in between; the last `_EXACT` ones are drawn from the states that they were drawn from. So a generator may
hold that many items back, and the last item proves that the data are the same.

Processes of a loader with persistent_workers=True keep random states over epochs: there the way begins at the loader's
first epoch.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import rng
from ff_core.state.fingerprint import Fingerprint
from ff_deepspeed import data_state

log = logging.getLogger("ff_deepspeed")

_EXACT = 2  # an iterator that makes its next item before it gives one away

DIFFERENT = (
    "batch %d of the replacement is not the one that the dead rank had trained on: the data differ between two starts "
    "of the script, or depend on something that lasts longer than an iterator over them (a generator of the data set's "
    "own, a shuffle made anew, the time). Derive them from a seed and the epoch"
)
LONG = (
    "persistent_workers=True: the loader's processes keep their random states over epochs, so the replacement of a "
    "dead rank loads all batches of earlier epochs again. persistent_workers=False makes that unnecessary"
)


_fetching = threading.local()


def is_fetching() -> bool:
    """Whether the calling thread is inside a data loader."""
    return bool(getattr(_fetching, "depth", 0))


@contextmanager
def _inside() -> Iterator[None]:
    _fetching.depth = getattr(_fetching, "depth", 0) + 1
    try:
        yield
    finally:
        _fetching.depth -= 1


class Source:
    """`make()` gives a fresh iterator over `loader`; it is called when the first item is wanted, or by `begin`."""

    def __init__(self, loader: Any, make: Callable[[], Iterator[Any]]) -> None:
        self.consumed = 0
        self._loader = loader
        self._make = make
        self._iterator: Iterator[Any] | None = None
        self._begun: dict[str, Any] | None = None
        self._before: deque[dict[str, Any]] = deque(maxlen=_EXACT)
        self._last: Fingerprint | None = None
        self._past: list[Source] = []  # earlier iterators over the same processes

    def begin(self) -> None:
        """Make the iterator now. Idempotent."""
        if self._iterator is None:
            own = data_state.begun(self._loader)
            self._begun = {"rng": rng.capture(), "own": own, "epoch": self._epoch(), "first": None}
            with _inside():
                self._iterator = self._make()
            self._remember()

    def next(self) -> Any:
        """The next item. Raises StopIteration at the end."""
        self.begin()
        assert self._iterator is not None and self._begun is not None
        before = rng.capture()
        if self._begun["first"] is None:
            self._begun["first"] = before
        with _inside():
            item = next(self._iterator)
        self.consumed += 1
        self._before.append(before)
        self._last = Fingerprint(item)
        return item

    def position(self) -> dict[str, Any]:
        """Where the iterator stands, for `seek` in another process. Made ready for that by `resolved`."""
        return {
            "begun": self._begun,
            # An epoch that has not begun yet: what the data set has from earlier ones counts all the same.
            "own": data_state.begun(self._loader) if self._begun is None else None,
            "consumed": self.consumed,
            "before": list(self._before),
            "last": self._last,
            "past": [resolved(source.position()) for source in self._past],
        }

    def seek(self, position: dict[str, Any]) -> None:
        """Go to `position`, consuming what lies before it. Changes the random generators.

        Raises FailoverError if the loader ends before, or if its last item is another one.
        """
        if self.consumed > position["consumed"]:
            self._iterator, self.consumed = None, 0
            if _persistent(self._loader):
                self._loader._iterator, self._loader._ff_past, self._past = None, [], []
        if position["begun"] is None:
            data_state.put(self._loader, position["own"])
            return
        if self._iterator is None:
            for past in position["past"][len(getattr(self._loader, "_ff_past", [])) :]:
                Source(self._loader, self._make).seek({**past, "past": []})
            self._begin_as(position["begun"])
        if self.consumed < position["consumed"]:
            self._consume(position)
            if self._last is not None and self._last.value() != position["last"]:
                raise FailoverError(DIFFERENT % self.consumed)

    def _consume(self, position: dict[str, Any]) -> None:
        before = position["before"]
        while self.consumed < position["consumed"]:
            left = position["consumed"] - self.consumed
            if left <= len(before):
                rng.restore(before[-left])
            try:
                self.next()
            except StopIteration:
                raise FailoverError(
                    f"the data loader of the replacement ended after {self.consumed} batches; the dead rank had "
                    f"consumed {position['consumed']}: the data differ between two starts of the script"
                ) from None

    def _begin_as(self, begun: dict[str, Any]) -> None:
        rng.restore(begun["rng"])
        data_state.put(self._loader, begun["own"])
        if begun["epoch"] is not None and self._epoch() != begun["epoch"]:
            self._sampler().set_epoch(begun["epoch"])
        self.begin()
        assert self._begun is not None
        if begun["first"] is not None:
            rng.restore(begun["first"])
            self._begun["first"] = begun["first"]

    def _remember(self) -> None:
        if not _persistent(self._loader):
            return
        earlier = self._loader.__dict__.setdefault("_ff_past", [])
        self._past = list(earlier)
        earlier.append(self)
        if len(earlier) == 2:
            log.warning(LONG)

    def _sampler(self) -> Any:
        return getattr(self._loader, "sampler", None) or getattr(self._loader, "data_sampler", None)

    def _epoch(self) -> int | None:
        """The epoch that a sampler with set_epoch() was told."""
        sampler = self._sampler()
        epoch = getattr(sampler, "epoch", None)
        return epoch if type(epoch) is int and callable(getattr(sampler, "set_epoch", None)) else None


def _persistent(loader: Any) -> bool:
    return bool(getattr(loader, "persistent_workers", False) and getattr(loader, "num_workers", 0))


def resolved(position: dict[str, Any]) -> dict[str, Any]:
    """`position` with the values of the fingerprints in it, so that it can be encoded."""
    return {key: value.value() if isinstance(value, Fingerprint) else value for key, value in position.items()}
