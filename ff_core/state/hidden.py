"""What `ff_core.state.captured` has taken of caches and of what refers weakly, back into a script's own objects.

Parts of `ff_core.state.restored.Putter`, whose `put` and `known` are given.
"""

from __future__ import annotations

from typing import Any

from ff_core.state import caches, weak
from ff_core.state.room import LostError, Taken


def put_cache(putter: Any, live: Any, taken: Taken, in_place: bool) -> Any:
    """The very object, with what it has to have; what is missing is computed again."""
    if type(live) is not caches.KIND:
        raise LostError("it is no cache there")
    now = caches.entries(live)
    held = {caches.key_of(entry): entry for entry in now}
    wanted = []
    for given, names, part in taken[1]:
        parts = [putter.put(None, argument, in_place=False) for argument in given]
        cut = len(parts) - len(names)
        entry = caches.Entry(tuple(parts[:cut]), dict(zip(names, parts[cut:], strict=True)), None)
        there = held.get(caches.key_of(entry))
        if there is None and part[0] == "left":
            continue
        try:
            value = putter.put(None if there is None else there.value, part, in_place=there is not None)
        except LostError:
            continue
        wanted.append(entry._replace(value=value))
    if not caches.are_same(wanted, now):
        caches.fill(live, wanted)
    return live


def put_weak(putter: Any, live: Any, taken: Taken, in_place: bool) -> Any:
    _, name, entries = taken
    is_same = weak.kind_of(type(live)) == name
    now = weak.members(live) if is_same else []
    placed = now if len(now) == len(entries) else [(None, None)] * len(entries)
    held = {id(key): value for key, value in now}
    wanted = []
    for (key, part), (own_key, own) in zip(entries, placed, strict=True):
        if weak.has_weak_keys(name):
            key = _referred(putter, key, own_key)
            wanted.append((key, putter.put(held.get(id(key)), part, in_place=in_place)))
        else:
            if type(key) is list:  # of a kind that cannot be saved, or taken
                key = putter.put(None, key, in_place=False) if key else own_key
            wanted.append((key, _referred(putter, part, own)))
    return weak.make(name, live if is_same and in_place else None, wanted)


def _referred(putter: Any, taken: Taken, live: Any) -> Any:
    """An object that is known, or the one at that place."""
    found = putter.put(live, taken, in_place=False) if taken else live
    if found is None:
        raise LostError("what it refers to is not known")
    return found
