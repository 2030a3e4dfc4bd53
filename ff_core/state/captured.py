"""A script's values as the codec can save them, and back into the script's own objects.

    taken = Taker(room, left).take(value)    # nested lists of plain values, arrays and (live) tensors
    value = put(live, taken, in_place=True)  # live: what the variable is now; the result is what it has to be

Plain values, NumPy's, tensors with their gradients, random generators, counters and iterators over lists and ranges;
lists, tuples, sets, deques and dicts of these; models, and objects of the script's own classes, whose parts are put
into the live ones. What is of another kind is left as it is.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from types import GeneratorType
from typing import Any

import torch

from ff_core.state import generators, values
from ff_core.state.values import HOLDERS, ITERATORS, PLAIN, SCALARS, np

_DEPTH = 8
_KEYS = frozenset({bool, int, float, str, bytes, type(None)})
_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_NUMPY_KINDS = "biufcSUmM"
_LEFT = ["left"]

Taken = list[Any]


class LostError(Exception):
    """A value that cannot be saved, or not be put back, and why. Never leaves this package."""


class Room:
    """How much may still be taken. items: entries of lists and dicts."""

    def __init__(self, size: int, items: int) -> None:
        self.size, self.items = size, items

    def use(self, size: int = 0, items: int = 0) -> None:
        """Raises LostError, and uses nothing, where that is too much."""
        if size > self.size:
            raise LostError("too large to be saved in every iteration")
        if items > self.items:
            raise LostError("too many entries to be saved in every iteration")
        self.size -= size
        self.items -= items


class Taker:
    """left: whether somebody else saves a value.  share: tensors as they are, to be encoded at once; else copies."""

    def __init__(self, room: Room, left: Callable[[Any], bool], *, share: bool) -> None:
        self._room, self._left, self._share = room, left, share
        self._above: list[int] = []

    def take(self, value: Any) -> Taken:
        """Raises LostError."""
        room = self._room.size, self._room.items
        try:
            return self._take(value)
        except LostError:
            self._room.size, self._room.items = room
            raise

    def _take(self, value: Any) -> Taken:
        kind = type(value)
        if kind in PLAIN or kind in SCALARS:
            self._room.use(len(value) if kind in (str, bytes) else 0)
            return ["plain", value]
        if self._left(value) or id(value) in self._above:
            return _LEFT
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if generators.is_generator(value):
            return ["random", generators.state_of(value)]
        if kind in ITERATORS:
            return _iterator(value)
        if kind is GeneratorType:
            raise LostError("how far a generator has come cannot be set")
        if np is not None and isinstance(value, (np.ndarray, np.generic)):
            return self._array(value)
        if len(self._above) > _DEPTH:
            raise LostError("nested too deeply")
        self._above.append(id(value))
        try:
            return self._within(value, kind)
        finally:
            self._above.pop()

    def _within(self, value: Any, kind: type) -> Taken:
        if isinstance(value, torch.nn.Module):
            named = [*value.named_parameters(), *value.named_buffers()]
            return ["module", [[name, self._take(tensor)] for name, tensor in named]]
        if kind in HOLDERS:
            self._room.use(items=len(value), size=8 * len(value))
            limit = value.maxlen if kind is deque else None
            if isinstance(value, dict):
                if not all(_is_key(key) for key in value):
                    return _LEFT
                return ["holder", kind.__name__, [[key, self._take(item)] for key, item in value.items()], limit]
            return ["holder", kind.__name__, [self._take(item) for item in value], limit]
        if values.is_users_object(value):
            held = value.__dict__
            self._room.use(items=len(held))
            return ["object", kind.__qualname__, [[name, self._take(part)] for name, part in held.items()]]
        return _LEFT

    def _tensor(self, tensor: torch.Tensor) -> Taken:
        if type(tensor) not in _TENSORS or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            return _LEFT
        gradient = tensor.grad if tensor.is_leaf else None
        if gradient is not None and gradient.layout != torch.strided:
            gradient = None
        self._room.use(tensor.nbytes + (0 if gradient is None else gradient.nbytes))
        leaf = tensor.is_leaf and tensor.requires_grad
        return ["tensor", self._copy(tensor), str(tensor.device), leaf, self._copy(gradient)]

    def _copy(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return tensor if tensor is None or self._share else tensor.detach().clone()

    def _array(self, value: Any) -> Taken:
        if value.dtype.kind not in _NUMPY_KINDS or not (type(value) is np.ndarray or isinstance(value, np.generic)):
            return _LEFT
        self._room.use(value.nbytes)
        return ["array", value if self._share else value.copy()]


def _is_key(key: Any) -> bool:
    return type(key) in _KEYS or (type(key) is tuple and all(map(_is_key, key)))


def _iterator(value: Any) -> Taken:
    if type(value) is itertools.count:
        return ["plain count", *value.__reduce__()[1]]
    reduced = value.__reduce__()
    held = reduced[1][0] if reduced[1] else None
    if type(held) is range:
        return ["range", held.start, held.stop, held.step, reduced[2] if len(reduced) > 2 else 0]
    # Of one that is at its end: without a place.
    return ["iterator", reduced[2] if len(reduced) > 2 else None]


# ---- back -----------------------------------------------------------------------------------------------------------


def put(live: Any, taken: Taken, *, in_place: bool) -> Any:
    """What the variable has to be. in_place: tensors and containers are written into, others may hold the very object.

    Raises LostError where `live` is not what the parts could be put into.
    """
    return _PUT[taken[0]](live, taken, in_place)


def _put_tensor(live: Any, taken: Taken, in_place: bool) -> Any:
    _, value, device, leaf, gradient = taken
    fits = isinstance(live, torch.Tensor) and (live.shape, live.dtype) == (value.shape, value.dtype)
    if in_place and fits and not live.is_inference():
        with torch.no_grad():
            live.copy_(value)
    else:
        live = value.to(torch.device(device), copy=True)
        live.requires_grad_(leaf)
    if live.is_leaf:
        live.grad = None if gradient is None else gradient.to(live.device, copy=True)
    return live


def _put_module(live: Any, taken: Taken, in_place: bool) -> Any:
    if not isinstance(live, torch.nn.Module):
        raise LostError("it is a model there")
    held: dict[str, torch.Tensor] = dict([*live.named_parameters(), *live.named_buffers()])
    for name, part in taken[1]:
        if name not in held:
            raise LostError(f"its {name} is not there")
        put(held[name], part, in_place=True)
    return live


def _put_random(live: Any, taken: Taken, in_place: bool) -> Any:
    try:
        generators.set_state(live, taken[1])
    except (AttributeError, TypeError, ValueError):
        raise LostError("it is another kind of generator there") from None
    return live


def _put_iterator(live: Any, taken: Taken, in_place: bool) -> Any:
    if type(live) not in ITERATORS or not hasattr(live, "__setstate__"):
        raise LostError("it is an iterator there")
    if taken[1] is None:
        deque(live, maxlen=0)
    else:
        live.__setstate__(taken[1])
    return live


def _range(start: int, stop: int, step: int, index: int) -> Any:
    made = iter(range(start, stop, step))
    made.__setstate__(index)  # type: ignore[attr-defined]
    return made


_MADE: dict[str, Any] = {kind.__name__: kind for kind in HOLDERS}
_DICTS = frozenset({"dict", "OrderedDict", "Counter", "defaultdict"})


def _put_holder(live: Any, taken: Taken, in_place: bool) -> Any:
    _, name, items, limit = taken
    is_same = type(live).__name__ == name and type(live) in HOLDERS and (name != "deque" or live.maxlen == limit)
    if name == "defaultdict" and not is_same:
        raise LostError("it is a defaultdict there")
    if name in _DICTS:
        held = live if is_same else {}
        pairs = [(key, put(held.get(key), part, in_place=in_place)) for key, part in items]
        made = live if is_same and in_place else _MADE[name]()
        if name == "defaultdict":
            made.default_factory = live.default_factory
        made.clear()
        made.update(pairs)
        return made
    now = list(live) if is_same and name not in ("set", "frozenset") else []
    if any(part is None or part[0] == "left" for part in items[len(now) :]):
        raise LostError("it has parts that are not saved")
    parts = [put(now[i] if i < len(now) else None, part, in_place=in_place) for i, part in enumerate(items)]
    if is_same and in_place and name in ("list", "deque", "set"):
        live.clear()
        (live.update if name == "set" else live.extend)(parts)
        return live
    return deque(parts, maxlen=limit) if name == "deque" else _MADE[name](parts)


def _put_object(live: Any, taken: Taken, in_place: bool) -> Any:
    if type(live).__qualname__ != taken[1] or not values.is_users_object(live):
        raise LostError(f"it is a {taken[1]} there")
    for name, part in taken[2]:
        if name not in live.__dict__ and part[0] == "left":
            continue
        live.__dict__[name] = put(live.__dict__.get(name), part, in_place=in_place)
    return live


_PUT: dict[str, Callable[[Any, Taken, bool], Any]] = {
    "plain": lambda live, taken, in_place: taken[1],
    "left": lambda live, taken, in_place: live,
    "array": lambda live, taken, in_place: _put_array(live, taken[1], in_place),
    "range": lambda live, taken, in_place: _range(*taken[1:]),
    "plain count": lambda live, taken, in_place: itertools.count(*taken[1:]),
    "tensor": _put_tensor,
    "module": _put_module,
    "random": _put_random,
    "iterator": _put_iterator,
    "holder": _put_holder,
    "object": _put_object,
}


def _put_array(live: Any, value: Any, in_place: bool) -> Any:
    if in_place and type(live) is type(value) is np.ndarray and (live.shape, live.dtype) == (value.shape, value.dtype):
        live[...] = value
        return live
    return value.copy()
