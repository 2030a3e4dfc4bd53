"""What `ff_core.state.captured` takes of caches and of what refers weakly. `ff_core.state.hidden` puts it back.

Parts of `Taker`.
"""

from __future__ import annotations

from typing import Any

from ff_core.state import caches, weak
from ff_core.state.room import LostError, Room, Taken

_ARGUMENTS = frozenset({"plain", "known", "named", "member", "made from", "text", "span", "numbers", "id of"})
_CACHE_BYTES, _CACHE_ITEMS = 1 << 20, 4000  # of one function
LEFT: Taken = ["left"]


def take_cache(taker: Any, value: Any) -> Taken:
    """Entries that cannot be saved are left out if their function computes them again."""
    room, taker.room = taker.room, Room(_CACHE_BYTES, _CACHE_ITEMS)
    found: list[Any] = []
    try:
        for entry in caches.entries(value):
            try:
                given = [taker.part(part) for part in (*entry.args, *entry.kwargs.values())]
                if not _ARGUMENTS.issuperset(part[0] for part in given):
                    raise LostError("an argument cannot be saved")
                found.append([given, list(entry.kwargs), taker.part(entry.value)])
            except LostError as error:
                if not caches.seems_pure(value):
                    raise LostError(f"its function would not give the same again, and {error}") from None
    finally:
        taker.room = room
    return ["cache", found]


def take_weak(taker: Any, value: Any, name: str) -> Taken:
    found: list[Any] = []
    for key, part in weak.members(value):
        if weak.has_weak_keys(name):
            found.append([_referred(taker, key), taker.part(part)])
        else:
            found.append([None if key is None else taker.key(key), _referred(taker, part)])
            if key is None and not found[-1][1]:  # has no place
                if len(taker.above) == 1 and part is not None:
                    raise LostError("what it refers to is not known")
                return LEFT
    return ["weak", name, found]


def _referred(taker: Any, value: Any) -> Taken:
    label = taker.known(value)
    return [] if label is None else ["known", label]
