"""Marks of a script's values: another one when the value is another one, in this process."""

from __future__ import annotations

import gc
import zlib
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import islice
from types import FunctionType, GeneratorType
from typing import Any

import torch

from ff_core.state import caches, foreign, generators, objects, standard, unwritten, values, weak
from ff_core.state.fingerprint import Fingerprint
from ff_core.state.placed import Placed
from ff_core.state.values import ITERATORS, PLAIN, WRITTEN, WRITTEN_AS, np

_DEPTH = 8  # as deep as values are saved
_MOST_BYTES = 1 << 20  # of an array whose contents all count
_MOST_SUMMED = 16 << 20  # of a larger one
_MOST_PARTS = 20_000  # of one value
HEAVY = 500
"""A mark of more parts is not made with every version."""
_LIBRARYS = 50  # parts that an object in a library's object counts for
_MOST_ENTRIES = 1_000_000  # of a list that counts as a whole
_LAST = 32  # entries of a long list that are compared with every version


class Marker:
    """known: gives the label of an object that is looked at by itself, else None.  parts: were looked at so far."""

    def __init__(self, known: Callable[[Any], str | None]) -> None:
        self._known = known
        self._above: list[int] = []
        self._libraries = 0  # objects of libraries above
        self.parts = 0

    def mark(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return repr(value)
        self.parts += 1
        if isinstance(value, WRITTEN):
            held = self._written(objects.tensors_of(value) if isinstance(value, torch.nn.Module) else [value])
            return (held, self._given(value)) if value.__dict__ and isinstance(value, torch.Tensor) else held
        base = objects.base_of(kind)
        if base is not None:
            return self._of_container(value, kind, base)
        if kind is GeneratorType:
            return None if value.gi_frame is None else (value.gi_frame.f_lasti, *_plain_marks(value.gi_frame.f_locals))
        if kind in ITERATORS:
            return self._of_iterator(value)
        if values.is_next(value):
            return self.mark(value.__self__)
        if np is not None and isinstance(value, np.ndarray):
            small = value.nbytes <= _MOST_BYTES and value.dtype.kind != "O"
            return value.shape, zlib.crc32(value.tobytes()) if small else (Fingerprint(value).value(), _sum(value))
        if generators.is_generator(value):
            return f"{generators.digest(value):08x}"
        if kind is FunctionType:
            return values.place_of(value)
        if standard.is_kind(kind):
            return standard.mark(value)
        if kind is caches.KIND:
            return self._of_cache(value) if caches.is_users(value) else id(value)
        if weak.kind_of(kind) is not None:
            return [(self._referred(key), self._referred(part)) for key, part in weak.members(value)]
        if foreign.is_librarys_class(kind):
            return (kind.__qualname__, *self._of_library(value))
        if values.is_loader_iterator(kind):
            return _given(value)
        if objects.is_users_object(value):
            label = self._known(value)
            return label if label is not None else (kind.__qualname__, *self._of_attributes(value))
        if kind in values.SCALARS or kind in WRITTEN_AS or isinstance(value, Enum):
            return repr(value)
        number: Any = next((base for base in values.NUMBERS if isinstance(value, base)), None)
        if number is not None:  # the script's class may write itself as it likes
            return number.__repr__(value), self._given(value) if getattr(value, "__dict__", None) else ()
        return id(value)

    def _of_library(self, value: Any) -> Any:
        if id(value) in self._above or self.parts > _MOST_PARTS:
            return ()
        self._above.append(id(value))
        self.parts += _LIBRARYS if self._libraries else 0
        self._libraries += 1
        try:
            simple, _ = foreign.simple_parts(value, self._libraries - 1)
            more = [(name, self._written(tensors)) for name, _, tensors in foreign.tensor_parts(value)]
            return [*((name, self.mark(part)) for name, part in simple.items()), *more]
        finally:
            self._libraries -= 1
            self._above.pop()

    def _written(self, tensors: list[torch.Tensor]) -> Any:
        return [(id(part), unwritten.version(part)) for part in tensors]

    def _given(self, value: Any) -> Any:
        """What a script has given to a tensor or a number."""
        if id(value) in self._above or len(self._above) > _DEPTH:
            return None
        self._above.append(id(value))
        try:
            return [(name, self.mark(part)) for name, part in list(value.__dict__.items())]
        finally:
            self._above.pop()

    def _of_container(self, value: Any, kind: type, base: type) -> Any:
        size = len(value)
        more = self._of_attributes(value) if kind is not base and objects.is_users_class(kind) else ()
        entries = size * _width(value, base)
        if entries > _MOST_ENTRIES:
            return size, repr(_last(value, base)), more
        plain = objects.marshalled(value, base)
        if plain is not None:
            self.parts += entries // 20
            return size, hash(plain), more
        return size, self._of_parts(value, base), more

    def _of_parts(self, value: Any, base: type) -> Any:
        if id(value) in self._above or len(self._above) > _DEPTH or self.parts > _MOST_PARTS:
            return None
        self._above.append(id(value))
        try:
            if issubclass(base, dict):
                pairs = list(base.items(value))
                return [(key if type(key) in PLAIN else id(key), self.mark(part)) for key, part in pairs]
            return [self.mark(part) for part in base.__iter__(value)]  # type: ignore[attr-defined]
        finally:
            self._above.pop()

    def _of_attributes(self, value: Any) -> tuple[Any, ...]:
        if id(value) in self._above or len(self._above) > _DEPTH or self.parts > _MOST_PARTS:
            return ()
        self._above.append(id(value))
        try:
            return tuple((name, self.mark(part)) for name, part in list(objects.attributes(value).items()))
        finally:
            self._above.pop()

    def _of_cache(self, value: Any) -> Any:
        if id(value) in self._above or len(self._above) > _DEPTH or caches.is_left(value):
            return None
        self._above.append(id(value))
        try:
            return caches.mark(value), [self.mark(part) for part in caches.results(value) if type(part) not in PLAIN]
        finally:
            self._above.pop()

    def _referred(self, value: Any) -> Any:
        """Plain keys and values as they are; other objects by themselves, and by what they have."""
        return self.mark(value) if type(value) in PLAIN else (id(value), self.mark(value))

    def _of_iterator(self, value: Any) -> Any:
        reduced = values.reduced(value)
        if reduced is None:
            return [self._of_argument(part) for part in gc.get_referents(value)]
        _, arguments, state = reduced
        held = [part if type(part) in PLAIN else self._of_argument(part) for part in arguments]
        return held, state if type(state) in PLAIN else self.mark(state)

    def _of_argument(self, part: Any) -> Any:
        """A long list that an iterator goes through is not looked at."""
        return id(part) if type(part) in (list, tuple, dict, range, str) and len(part) > _LAST else self.mark(part)


def _sum(array: Any) -> int:
    """Of all its words: a write into a few rows is in no sample. Ten times as fast as a checksum."""
    if array.dtype.kind == "O" or array.nbytes > _MOST_SUMMED or not array.flags.c_contiguous:
        return 0
    data = array.reshape(-1).view(np.uint8)
    words = data[: data.size // 8 * 8].view(np.uint64)
    return int(words.sum(dtype=np.uint64)) + int(data[words.nbytes :].sum())


def _given(iterator: Any) -> int | None:
    """How many items one over a data loader has given; None: that is looked after by somebody else."""
    if not isinstance(iterator, Placed):
        given: int = iterator._num_yielded
        return given
    return None if iterator.goes_on_by_itself() else iterator.count()


def _width(value: Any, base: type) -> int:
    """About how many entries the first entry has."""
    first: Any = next(iter(dict.values(value) if issubclass(base, dict) else base.__iter__(value)), None)  # type: ignore[attr-defined]
    return max(len(first), 1) if type(first) in (list, tuple, dict, set, deque) else 1


def _last(value: Any, base: type) -> list[Any]:
    """Plain values among the last items of a list or dict: enough to tell whether it goes on alike."""
    if issubclass(base, dict):
        pairs = islice(reversed(list(dict.items(value))), _LAST)
        return [pair for pair in pairs if all(type(part) in PLAIN for part in pair)]
    if issubclass(base, (set, frozenset)):
        return []
    return [part for part in islice(base.__reversed__(value) if base is not tuple else reversed(value), _LAST)  # type: ignore[attr-defined]
            if type(part) in PLAIN]  # fmt: skip


def _plain_marks(held: dict[str, Any]) -> list[str]:
    return [repr(part) for part in list(held.values()) if type(part) in PLAIN]
