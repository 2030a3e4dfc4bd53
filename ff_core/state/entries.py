"""Entries of variables in a version, by path: [taken or None, shown, text, CRC of the mark, is it the same object].

taken: see `ff_core.state.captured`; None: it cannot be saved. shown: for a message; of a list that is too long "N
entries". text: equal in another process if
the value is, of what cannot be saved. A path is the label of a space and a name.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from ff_core.state import values
from ff_core.state.captured import Taker
from ff_core.state.fingerprint import Fingerprint
from ff_core.state.room import LostError, Taken, TooLongError
from ff_core.state.shared import has_view

NEW_BYTES = 256 << 10
"""Under names that were not there before the loop; a tensor of a quarter of it is a batch."""


def counts_of(saved: dict[str, Any]) -> dict[str, int]:
    """Whole numbers in what `Variables.save()` gave."""
    entries = {**saved["changed"], **saved["new"]}
    taken = {path: entry[0] for path, entry in entries.items() if entry is not None and entry[0] is not None}
    return {path: part[1] for path, part in taken.items() if part[0] == "plain" and type(part[1]) is int}


def split(path: str) -> tuple[str, str]:
    """Label of the space, name. A label that ends in a double colon may be followed by dots."""
    if is_lasting(path):
        cut = path.index("::") + 2
        return path[:cut], path[cut:]
    cut = max(path.rfind("."), path.rfind(":")) + 1
    return path[:cut], path[cut:]


def is_lasting(path: str) -> bool:
    """Whether a new name is there to stay, and no batch."""
    return "::" in path


def reference(value: Any) -> Callable[[], Any]:
    """Gives `value` while it lives, or its id if it cannot be referred to: a list may have a loss and its graph."""
    try:
        return weakref.ref(value)
    except TypeError:
        number = id(value)
        return lambda: number


def refers_to(referred: Any, value: Any) -> bool:
    return referred is value or (type(referred) is int and referred == id(value))


def stays(value: Any) -> Callable[[Any], bool]:
    """Tells later whether it is given `value` again. Keeps no tensor alive: it may be a batch."""
    try:
        referred: Any = weakref.ref(value)
        return lambda other: referred() is other
    except TypeError:
        held = list(values.tensors(value))
    if not held:
        return lambda other: other is value
    parts = [weakref.ref(tensor) for tensor in held]

    def is_again(other: Any) -> bool:
        now = list(values.tensors(other))
        return len(now) == len(parts) and all(part() is tensor for part, tensor in zip(parts, now, strict=True))

    return is_again


def entry_of(taker: Taker, path: str, value: Any, mark: Any, same: bool) -> list[Any]:
    try:
        return [taker.take(value, path), values.shown(value), None, 0, same]
    except TooLongError:
        return [None, values.shown(value), values.text(value, mark), crc(mark), same]
    except LostError:
        return [None, values.of_kind(value), values.text(value, mark), crc(mark), same]


def small_entry(taker: Taker, path: str, value: Any) -> list[Any] | None:
    """Of a value under a new name, which may be a batch, or come from the model."""
    held = list(values.tensors(value))
    if any(tensor.grad_fn is not None or tensor.nbytes > NEW_BYTES // 4 for tensor in held):
        return None
    entry = entry_of(taker, path, value, None, False)
    return None if entry[0] is None else entry


def labels(entries: dict[str, Any]) -> Iterator[str]:
    """Of objects that what was saved belongs to, or refers to."""
    for path, entry in entries.items():
        yield split(path)[0]
        parts = [entry]
        while parts:
            part = parts.pop()
            if type(part) is list:
                if len(part) == 2 and part[0] == "known":
                    yield part[1]
                parts += part


def is_made_late(entry: list[Any] | None) -> tuple[bool, bool]:
    """Sorts: first what is written into the object that was there at first, and wholes before their parts."""
    return entry is None or not entry[4], entry is not None and has_view(entry[0])


def contents_of(value: Any) -> str:
    held = [tensor.detach() for tensor in values.tensors(value)]
    return Fingerprint(held).value() if held else ""


def crc(mark: Any) -> int:
    return zlib.crc32(repr(mark).encode())


def is_plain(taken: Taken) -> bool:
    """Nothing in it is a tensor or an array."""
    parts: list[Any] = [taken]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif not (part is None or isinstance(part, (bool, int, float, complex, str, bytes))):
            return False
    return True
