"""Loaders with persistent_workers=True beside the training loader: an evaluation's.

Such a loader draws a seed for its processes when it is gone through first, and never again. A replacement goes through
it first where its rank had done so long ago: it must draw from the states of then, and leave those of now alone. The
processes keep random states of their own, so earlier passes are gone through again.

    expect(saved)               in a replacement, when it joins: positions() of the dead rank
    catch_up(loader, make)      before the script goes through a loader
    positions(number)           with every version; `number` is the training loader's, which is not among them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from ff_core.state import rng
from ff_deepspeed.source import Source, is_persistent

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


def catch_up(loader: Any, make: Callable[[], Iterator[Any]]) -> None:
    """Nothing for a loader whose processes end with each pass."""
    if not is_persistent(loader):
        return
    number = loader._ff_number
    _begun[number] = loader
    saved = _expected.pop(number, None)
    if saved is None:
        return
    with rng.kept():
        for count in saved["passes"][len(getattr(loader, "_ff_past", [])) :]:
            if loader._iterator is None:
                rng.restore(saved["rng"])
            source = Source(loader, make)
            source.begin()
            for _ in range(count):
                source.next()
