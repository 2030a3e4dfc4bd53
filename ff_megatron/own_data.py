"""Data of a loop of the script's own: iterators that can go back, and in a replacement to where the dead rank was.

A survivor hands kept micro-batches out again (`ff_megatron.data.Rewindable`). A replacement begins the script's
iterator as the dead rank began it, and fetches as many (`ff_core.state.source`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from ff_core.errors import UnsupportedError
from ff_core.state import rng, variables
from ff_core.state.source import Source, resolved
from ff_megatron import own_words
from ff_megatron.data import Kept, Positions, Rewindable, replay_nothing

Given = Any
"""An iterator, what `iter()` makes one of, or a function(start) that makes one from micro-batch number `start` on."""


def of(given: Given, start: int) -> Iterator[Any]:
    """An iterator over what the script has given."""
    return iter(given(start) if callable(given) else given)


class _Loader:
    """What an iterator of the script is known by: its parts are looked at, and nothing is written into itself."""

    def __init__(self, given: Given) -> None:
        self.given = given


class Stream(Rewindable):
    """One of them."""

    def __init__(self, given: Given) -> None:
        loader = given if isinstance(given, DataLoader) else _Loader(given)
        anywhere: Callable[[int], Iterator[Any]] | None = partial(of, given) if callable(given) else None
        self._stream = Source(loader, partial(of, given, 0), anywhere)
        super().__init__(self._stream, loader=loader)
        self._with = None  # the source looks
        self._before: Any = None  # the place before the first kept item

    def load(self) -> Kept:
        item = self._stream.next()
        return Kept(item, rng.capture(), self._stream.loaded, self._stream.position(look=False))

    def place(self) -> dict[str, Any]:
        """Where the next item is, for `go` in another process."""
        index = self.position - self._first
        if index == len(self._kept):  # nothing was fetched beyond
            return resolved(self._stream.position())
        place = self._kept[index - 1].place if index else self._before
        assert place is not None, "nobody goes back behind what is kept"
        return resolved(place)

    def forget(self, before: int) -> None:
        held = {self._first + number: kept.place for number, kept in enumerate(self._kept)}
        super().forget(before)
        self._before = held.get(self._first - 1, self._before)

    def go(self, place: dict[str, Any]) -> None:
        """Where `place()` was taken. Raises FailoverError if the data differ."""
        position = place["consumed"]
        if self.position == self._first and not self._kept and position >= self._first:
            with rng.kept():
                self._stream.seek(place)
            self._first = self.position = position
            self._before = place
        else:
            self.seek(position)
            self._stream.put(place["now"])


class OwnData:
    """All of one loop. wrap: RerunDataIterator."""

    def __init__(self, sources: Sequence[Given], wrap: Callable[[Any], Any]) -> None:
        if len(set(map(id, sources))) < len(sources):
            raise UnsupportedError(own_words.DATA_TWICE)
        self._streams = [Stream(given) for given in sources]
        self.iterators = [wrap(stream) for stream in self._streams]
        self._positions = Positions()
        for stream in self._streams:
            variables.of_process.loads(stream._loader, again=True)

    def places(self) -> list[dict[str, Any]]:
        return [stream.place() for stream in self._streams]

    def go(self, places: list[dict[str, Any]]) -> None:
        """To `places()` of this process or another one of the same rank. Raises FailoverError."""
        for iterator, stream, place in zip(self.iterators, self._streams, places, strict=True):
            replay_nothing(iterator)
            stream.go(place)

    def sealed(self, version: int, oldest_needed: int) -> None:
        """`version` is complete; nobody goes back behind version `oldest_needed`."""
        self._positions.sealed(self._streams, version, oldest_needed)
