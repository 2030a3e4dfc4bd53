"""State of a data loader that lasts longer than an iterator over it: what it was when an epoch began.

Two kinds are put back in a replacement: the states of random generators, and numbers that iterating has changed: a
counter in `__getitem__`, an order that is shuffled in place. Of numbers that are too many to be saved with every
version there is a checksum: a replacement has the same, or is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import generators, reach

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_MOST_BYTES = 32 << 10  # of all numbers that are saved
_MOST_ELEMENTS = 10_000_000  # of one array or tensor that is looked at
_MOST_ITEMS = 1_000_000  # of one list
_NUMBERS = (int, float)
_EXACT = {int: torch.int64, float: torch.float64}  # a list of numbers of this type is saved as a tensor of that one

GONE = (
    "the data loader of the replacement has no number {path}, which changed with the dead rank's earlier epochs. Make "
    "it in the constructor, and let it depend on a seed and the epoch only"
)
MANY = (
    "{path} of the data loader changes from epoch to epoch, and has too many numbers to be saved with every version: "
    "the replacement of a dead rank cannot have it. Let it depend on a seed and the epoch only, not on the epoch before"
)
GENERATORS = (
    "the data loader of the replacement has {mine} random generators where the dead rank's had {theirs}: make them in "
    "the constructor, not when they are first used"
)


def begun(loader: Any) -> dict[str, Any]:
    """At the begin of an epoch: {"generators": states, "changed": path -> number or numbers, "many": path -> checksum}.

    The first call for a loader remembers its numbers: "changed" and "many" are what differs from them.
    """
    first = _first(loader)
    changed: dict[str, Any] = {}
    many: dict[str, int] = {}
    room = _MOST_BYTES
    for path, owner, name in numbers(loader):
        value = value_of(owner, name)
        kind, now = _kind(value), checksum(value)
        if path not in first or first[path][0] != kind or first[path][1] == now:
            continue
        taken = _taken(value)
        size = getattr(taken, "nbytes", 8)
        if taken is not None and size <= room:
            room -= size
            changed[path] = taken
        else:
            many[path] = now
    states = [generators.state_of(found) for found in _generators(loader)]
    return {"generators": states, "changed": changed, "many": many}


def put(loader: Any, saved: dict[str, Any]) -> None:
    """Bring `loader`, of which nothing was iterated over here, to where `begun` was taken.

    Raises FailoverError or UnsupportedError, naming what cannot be put back.
    """
    _first(loader)
    found = _generators(loader)
    if len(found) != len(saved["generators"]):
        raise FailoverError(GENERATORS.format(mine=len(found), theirs=len(saved["generators"])))
    for generator, state in zip(found, saved["generators"], strict=True):
        _set_state(generator, state)
    places = {path: (owner, name) for path, owner, name in numbers(loader)}
    for path, value in saved["changed"].items():
        if path not in places:
            raise FailoverError(GONE.format(path=path))
        _set(*places[path], path, value)
    for path, wanted in saved["many"].items():
        if path not in places or checksum(value_of(*places[path])) != wanted:
            raise FailoverError(MANY.format(path=path))


# ---- generators -----------------------------------------------------------------------------------------------------


def _generators(loader: Any) -> list[Any]:
    return [part for _, part in reach.objects(loader) if generators.is_generator(part)]


def _set_state(generator: Any, state: Any) -> None:
    try:
        generators.set_state(generator, state)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"a data loader has a {type(generator).__qualname__} where the dead rank's had another generator: {error}"
        ) from error


# ---- numbers --------------------------------------------------------------------------------------------------------


def numbers(loader: Any, items: int | None = None, *, widely: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """(path, owner, name) of every number, array and list of numbers: an attribute of `owner`, or an item of a dict.

    items, widely: as of `places`.
    """
    for path, owner, name, value in places(loader, items, widely=widely):
        if _kind(value) is not None:
            yield path, owner, name


def places(loader: Any, items: int | None = None, *, widely: bool = False) -> Iterator[tuple[str, Any, str, Any]]:
    """(path, owner, name, value) of every attribute, and item of a dict under a text.

    items, widely: as of `reach.objects`; and then what functions of the script ask for by a global name.
    """
    for path, part in reach.objects(loader, items or reach.MOST, widely=widely):
        held = islice(part.items(), items) if isinstance(part, dict) else reach.attributes(part).items()
        for name, value in list(held):
            if isinstance(name, str) and not name.startswith("_ff_"):
                yield f"{path}.{name}" if path else name, part, name, value
        if widely and isinstance(part, reach.CODED):
            for name, value in reach.global_values(part):
                yield f"{path}.{name}", reach.globals_of(part), name, value


def _kind(value: Any) -> str | None:
    """What a number is; None for what is none. Flags are none: they say what a process has done, as opening a file."""
    if type(value) in _NUMBERS:
        return type(value).__name__
    if np is not None and isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size <= _MOST_ELEMENTS:
        return f"{value.dtype}{value.shape}"
    if type(value) is torch.Tensor and value.device.type == "cpu" and not value.requires_grad:
        return f"{value.dtype}{tuple(value.shape)}" if value.numel() <= _MOST_ELEMENTS else None
    if type(value) is list and value and len(value) <= _MOST_ITEMS and type(value[0]) in _NUMBERS:
        return "list"
    return None


def _taken(value: Any) -> Any:
    """A copy that is quickly encoded with every version; None if there is none."""
    if type(value) in _NUMBERS:
        return value
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        return torch.tensor(value, dtype=_EXACT[kinds.pop()]) if len(kinds) == 1 and kinds <= _EXACT.keys() else None
    return value.clone() if torch.is_tensor(value) else value.copy()


def checksum(value: Any) -> int:
    if torch.is_tensor(value):
        return zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().data) if value.numel() else 0
    if np is not None and isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).tobytes())
    return zlib.crc32(repr(value).encode())


def _first(loader: Any) -> dict[str, tuple[str | None, int]]:
    """The numbers that the loader had when this was asked first."""
    kept = getattr(loader, "__dict__", {})
    if "_ff_first" not in kept:
        values = ((path, value_of(owner, name)) for path, owner, name in numbers(loader))
        found = {path: (_kind(value), checksum(value)) for path, value in values}
        if not hasattr(loader, "__dict__"):
            return found
        kept["_ff_first"] = found
    first: dict[str, tuple[str | None, int]] = kept["_ff_first"]
    return first


def value_of(owner: Any, name: str) -> Any:
    if isinstance(owner, dict):
        return owner[name]
    held = getattr(owner, "__dict__", {})
    return held[name] if name in held else getattr(owner, name)


def _set(owner: Any, name: str, path: str, value: Any) -> None:
    live = value_of(owner, name)
    if isinstance(live, list) and torch.is_tensor(value):
        live[:] = value.tolist()  # in place: others may hold the very list
    elif _kind(live) != _kind(value):
        raise FailoverError(GONE.format(path=path))
    elif torch.is_tensor(live):
        live.copy_(value)
    elif np is not None and isinstance(live, np.ndarray):
        live[...] = value
    else:
        set_value(owner, name, value)


def set_value(owner: Any, name: str, value: Any) -> None:
    """Where `value_of` finds it, whatever the owner's class does when it is set."""
    if isinstance(owner, dict):
        owner[name] = value
    elif isinstance(owner, type):
        setattr(owner, name, value)
    elif name in getattr(owner, "__dict__", {}):
        vars(owner)[name] = value
    else:
        object.__setattr__(owner, name, value)
