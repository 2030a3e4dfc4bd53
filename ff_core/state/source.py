"""An iterator over a data loader whose position another process can go to.

Position = how the iterator was begun (states of the random generators when it was made and before its first item, as
samplers draw their seed at either time) and how many items were consumed. Going there means beginning from the same
states and consuming as many items; that is exact for shuffling samplers, loader processes and data sets with state of
their own. Items before the last ones may come out with other random numbers in them, as training used the same
generators in between. The last `_EXACT` ones are drawn from the states that they were drawn from, and with what the
loader's objects had by then (`loaded_with`). So a generator may hold that many items back, and the last item proves
that the data are the same.

Where loading has left nothing behind (see `loading`), what lies before the last ones is not loaded: only the sampler
goes on. Should the last item be another one then, everything is loaded again.

Processes of a loader with persistent_workers=True keep random states over epochs: there the way begins at the loader's
first epoch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import data_state, loaded_with, loading, rng
from ff_core.state.fingerprint import Fingerprint

log = logging.getLogger("ff_core")

_EXACT = 2  # an iterator that makes its next item before it gives one away

DIFFERENT = (
    "batch %d of the replacement is not the one that the dead rank had trained on: the data differ between two starts "
    "of the script, or depend on something that lasts longer than an iterator over them (a generator of the data set's "
    "own, a shuffle made anew, the time). Derive them from a seed and the epoch"
)
SHORTER = (
    "the data loader of the replacement ended after %d batches; the dead rank had consumed %d: the data differ between "
    "two starts of the script"
)
LONG = (
    "persistent_workers=True: the loader's processes keep their random states over epochs, so the replacement of a "
    "dead rank loads all batches of earlier epochs again. persistent_workers=False makes that unnecessary"
)


AGAIN = (
    "%d batches that lie before the failure were loaded again in %.1f s, as loading changes %s. The replacement of a "
    "dead rank need not do that where a map-style data set derives what it draws from the item's number and a seed"
)
_LONG_S = 1.0  # what is worth a line in the log

_fetching = threading.local()


def is_fetching() -> bool:
    """Whether the calling thread is inside a data loader."""
    return bool(getattr(_fetching, "depth", 0))


@contextmanager
def inside() -> Iterator[None]:
    """What is done here is within a data loader."""
    _fetching.depth = getattr(_fetching, "depth", 0) + 1
    try:
        yield
    finally:
        _fetching.depth -= 1


@dataclass
class Reached:
    """How an iterator was begun, and how far it is. A loader keeps those of all iterators over the same processes: it
    must not keep an iterator or itself there. In a cycle of references its processes would end when garbage is
    collected, and torch waits 5 s for each of them then."""

    begun: dict[str, Any] | None = None
    consumed: int = 0
    before: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_EXACT))
    last: Fingerprint | None = None
    changed: str | None = None  # what loading has left behind

    def position(self, loader: Any) -> dict[str, Any]:
        """For `seek` in another process, without earlier iterators, and what is there `now`."""
        return {
            "begun": self.begun,
            # An epoch that has not begun yet: what the data set has from earlier ones counts all the same.
            "own": data_state.begun(loader) if self.begun is None else None,
            "consumed": self.consumed,
            "before": list(self.before),
            "last": self.last,
            "changed": self._left_behind(loader),
            "now": None,
            "past": [],
        }

    def _left_behind(self, loader: Any) -> str | None:
        """What loading has changed in a process that loads; None: nothing, and each has loaded twice."""
        unseen = loading.unseen(loader)
        if unseen is None and self.consumed < 2 * max(1, loader.num_workers):
            return "what is not known after so few of them"
        return unseen or self.changed


class Source:
    """`make()` gives a fresh iterator over `loader`; it is called when the first item is wanted, or by `begin`.

    anywhere: gives one that begins behind so many items, if that is possible without loading them.
    """

    def __init__(
        self, loader: Any, make: Callable[[], Iterator[Any]], anywhere: Callable[[int], Iterator[Any]] | None = None
    ) -> None:
        self._loader, self._anywhere = loader, anywhere
        self._with = loaded_with.LoadedWith(loader)  # before anything is put back
        self._make = make
        self._iterator: Iterator[Any] | None = None
        self._reached = Reached()
        self.ended = False
        self.loaded: loaded_with.Taken | None = None
        """What the loader's objects had behind the last item."""
        self._past: list[Reached] = []  # earlier iterators over the same processes
        self._order: loading.Order | None = None

    @property
    def consumed(self) -> int:
        """Number of items."""
        return self._reached.consumed

    def begin(self) -> None:
        """Make the iterator now. Idempotent."""
        if self._iterator is None:
            own = data_state.begun(self._loader)
            begun = {"rng": rng.capture(), "own": own, "with": self._with.now(), "epoch": self._epoch(), "first": None}
            self._reached.begun = begun
            self._open(0)

    def _open(self, skipped: int) -> None:
        with inside(), loading.watched(self._loader, skipped) as self._order:
            self._iterator = self._anywhere(skipped) if self._anywhere and skipped else self._make()
        self._with = loaded_with.LoadedWith(self._loader)
        self._reached.consumed = skipped
        self._remember()

    def next(self) -> Any:
        """The next item. Raises StopIteration at the end."""
        self.begin()
        assert self._iterator is not None and self._reached.begun is not None
        before = {"rng": rng.capture(), "with": self.now()}
        if self._reached.begun["first"] is None:
            self._reached.begun["first"] = before["rng"]
        with inside():
            try:
                item = next(self._iterator)
            except StopIteration:
                self.ended = True
                raise
        self.loaded = self._with.now(loaded=True)
        self._reached.consumed += 1
        if isinstance(item, loading.Loaded):
            self._reached.changed = self._reached.changed or item.changed
            item = item.data
        self._reached.before.append(before)
        self._reached.last = Fingerprint(item)
        return item

    @property
    def last_made_from(self) -> dict[str, Any]:
        """What the last item was made from: random states, and what the loader's objects had. For `make_from`."""
        return self._reached.before[-1]

    def make_from(self, made_from: dict[str, Any], draws: bool = True) -> None:
        """The next item is made from this, of another process. draws: with its random states."""
        if draws:
            rng.restore(made_from["rng"])
        loaded_with.put(self._loader, made_from["with"])

    def now(self) -> loaded_with.Taken | None:
        """What the loader's objects have; None before the iterator was made."""
        return None if self._iterator is None else self._with.now()

    def put(self, now: dict[str, Any] | None) -> None:
        """Of another process, once the items are loaded that it had loaded by then."""
        loaded_with.put(self._loader, now)

    def release(self) -> None:
        """Nothing more is wanted. Processes of a loader end when nobody holds their iterator any more, as when a script
        leaves its loop. Left to Python's exit, they are terminated and waited for, and may ignore that."""
        self._iterator = None

    def position(self, *, look: bool = True) -> dict[str, Any]:
        """Where the iterator stands, for `seek` in another process. Made ready for that by `resolved`.

        look: at what the loader's objects have; else it is what they had behind the last item.
        """
        past = [resolved(reached.position(self._loader)) for reached in self._past]
        return {**self._reached.position(self._loader), "now": self.now() if look else self.loaded, "past": past}

    def seek(self, position: dict[str, Any]) -> None:
        """Go to `position`, loading what lies before it if that has to be. Changes the random generators.

        Raises FailoverError if the loader ends before, or if its last item is another one.
        """
        if self.consumed > position["consumed"]:
            self._iterator, self._reached.consumed = None, 0
            if is_persistent(self._loader):
                self._loader._iterator, self._loader._ff_past, self._past = None, [], []
        if position["begun"] is None:
            data_state.put(self._loader, position["own"])
            return
        is_needless = position["changed"] is None or self._anywhere is not None
        needless = position["consumed"] - len(position["before"]) if is_needless else 0
        if needless > 0 and self._iterator is None:
            self._go(position, needless)
            if self._is_at(position):
                self.put(position["now"])
                return
            self._iterator, self._reached.consumed = None, 0
        began = time.monotonic()
        again = position["consumed"] - self.consumed
        self._go(position, 0)
        if not self._is_at(position):
            raise FailoverError(DIFFERENT % self.consumed)
        self.put(position["now"])
        if time.monotonic() - began > _LONG_S:
            log.warning(AGAIN, again, time.monotonic() - began, position["changed"] or "something that was not seen")

    def _is_at(self, position: dict[str, Any]) -> bool:
        return self._reached.last is None or self._reached.last.value() == position["last"]

    def _go(self, position: dict[str, Any], needless: int) -> None:
        """needless: so many items are left out, if nothing was consumed yet."""
        if self._iterator is None:
            for past in position["past"][len(getattr(self._loader, "_ff_past", [])) :]:
                Source(self._loader, self._make).seek(past)
            self._begin_as(position["begun"], needless, position)
        before = position["before"]
        while self.consumed < position["consumed"]:
            left = position["consumed"] - self.consumed
            if left <= len(before):
                self.make_from(before[-left])
            try:
                self.next()
            except StopIteration:
                raise FailoverError(SHORTER % (self.consumed, position["consumed"])) from None

    def _begin_as(self, begun: dict[str, Any], needless: int, position: dict[str, Any]) -> None:
        rng.restore(begun["rng"])
        data_state.put(self._loader, begun["own"])
        loaded_with.put(self._loader, begun["with"])
        if begun["epoch"] is not None and self._epoch() != begun["epoch"]:
            self._sampler().set_epoch(begun["epoch"])
        self._reached.begun = dict(begun)
        try:
            self._open(needless)
            if begun["first"] is not None:
                rng.restore(begun["first"])
            if needless and self._anywhere is None:
                assert self._order is not None, "only a loader that is known says that nothing was left behind"
                self._order.advance()
        except StopIteration:
            raise FailoverError(SHORTER % (0, position["consumed"])) from None

    def _remember(self) -> None:
        if not is_persistent(self._loader):
            return
        earlier = self._loader.__dict__.setdefault("_ff_past", [])
        self._past = list(earlier)
        earlier.append(self._reached)
        if len(earlier) == 2:
            log.warning(LONG)

    def _sampler(self) -> Any:
        return getattr(self._loader, "sampler", None) or getattr(self._loader, "data_sampler", None)

    def _epoch(self) -> int | None:
        """The epoch that a sampler with set_epoch() was told."""
        sampler = self._sampler()
        epoch = getattr(sampler, "epoch", None)
        return epoch if type(epoch) is int and callable(getattr(sampler, "set_epoch", None)) else None


def is_persistent(loader: Any) -> bool:
    """Whether its processes last longer than an iterator over it."""
    return bool(getattr(loader, "persistent_workers", False) and getattr(loader, "num_workers", 0))


def resolved(position: dict[str, Any]) -> dict[str, Any]:
    """`position` with the values of fingerprints, and of what objects have, so that it can be encoded."""
    return {key: _resolved(value) for key, value in position.items()}


def _resolved(value: Any) -> Any:
    if isinstance(value, list):
        return [resolved(part) if isinstance(part, dict) else part for part in value]
    if isinstance(value, dict):
        return resolved(value)
    return value.value() if isinstance(value, (Fingerprint, loaded_with.Taken)) else value
