"""Loaders with persistent_workers=True beside the training loader: an evaluation's.

Such a loader draws a seed for its processes when it is gone through first, and never again. A replacement goes through
it first where its rank had done so long ago: it must draw from the states of then, and leave those of now alone. The
processes keep random states of their own, so earlier passes are gone through again.

    expect(saved)               in a replacement, when it joins: positions() of the dead rank
    go_back(saved)              where an iteration is repeated: positions() before it
    catch_up(loader, make)      before the script goes through a loader
    items(loader, make)         in the exact loop: the script goes through it
    positions(number)           with every version; `number` is the training loader's, which is not among them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from ff_core.state import rng
from ff_core.state.source import Source, is_persistent

_begun: WeakValueDictionary[int, Any] = WeakValueDictionary()
_expected: dict[int, dict[str, Any]] = {}


def positions(training: int | None) -> dict[int, dict[str, Any]]:
    """By the loader's number: {"rng": states where it was gone through first, "passes": items of each pass}."""
    found = {
        number: {"rng": past[0].begun["rng"], "passes": [reached.consumed for reached in past]}
        for number, past in ((number, getattr(loader, "_ff_past", [])) for number, loader in sorted(_begun.items()))
        if number != training and past
    }
    return {**_expected, **found}


def expect(saved: dict[int, dict[str, Any]]) -> None:
    """See above."""
    _expected.clear()
    _expected.update(saved)


def go_back(saved: dict[int, dict[str, Any]]) -> None:
    """The processes of what the void iteration has gone through end, and begin again where the script asks for them."""
    others = dict(saved)
    for number, loader in list(_begun.items()):
        if number in saved and _passes(loader) == saved[number]["passes"] and _began_as(loader, saved[number]):
            del others[number]
        else:
            _end(loader)
    expect(others)


def _passes(loader: Any) -> list[int]:
    return [reached.consumed for reached in getattr(loader, "_ff_past", [])]


def _began_as(loader: Any, saved: dict[str, Any]) -> bool:
    """Whether the processes have the same seed: torch's generator gives it."""
    return bool(loader._ff_past[0].begun["rng"]["torch"] == saved["rng"]["torch"])


def _end(loader: Any) -> None:
    loader._iterator, loader._ff_past = None, []


def items(loader: Any, make: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """An iterator, begun. What void iterations have taken from it is known by its count."""
    catch_up(loader, make)
    source = Source(loader, make)
    source.begin()
    return _items(source)


def _items(source: Source) -> Iterator[Any]:
    while True:
        try:
            item = source.next()
        except StopIteration:
            return
        yield item


def catch_up(loader: Any, make: Callable[[], Iterator[Any]]) -> None:
    """Nothing for a loader whose processes end with each pass."""
    if not is_persistent(loader):
        return
    number = loader._ff_number
    _begun[number] = loader
    saved = _expected.pop(number, None)
    if saved is None:
        return
    done = _passes(loader)
    if done and not (done == saved["passes"][: len(done)] and _began_as(loader, saved)):
        _end(loader)  # what a replacement did by itself on its way
    with rng.kept():
        for count in saved["passes"][len(_passes(loader)) :]:
            if loader._iterator is None:
                rng.restore(saved["rng"])
            source = Source(loader, make)
            source.begin()
            for _ in range(count):
                source.next()
