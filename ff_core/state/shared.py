"""Objects that a script has at several places: a list that is an entry of another one, too; a window into an array.

What is put back must be one object again, else a later write is seen at one place only.

    met = Met()                         # of one version
    met.again(value)                    # taken, if it is there already
    met.add(value, taken)
    met.find_views()                    # once all is taken

Where an object is taken first its entry becomes `shared NUMBER TAKEN` once there is a second one, `same NUMBER`. A
tensor or array within the memory of another one that is saved becomes `view NUMBER SHAPE STRIDES OFFSET` of that:
elements of a tensor, bytes of an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ff_core.state.room import LostError, Taken
from ff_core.state.values import np

_ONE = frozenset({"tensor", "array", "records", "random", "object", "parts", "contents", "iterator", "range"})
"""Kinds of which it matters whether they are the same. And containers that can be written."""
PLACED = _ONE | {"holder", "numbers"}
"""Kinds of what an object that is there is written with."""
_FIXED = frozenset({"tuple", "frozenset"})


class Met:
    """Objects that were taken so far."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[Any, Taken]] = {}  # with the object: its id is not another's then
        self._around: dict[int, int] = {}  # ids of objects that are being taken, and are referred to within
        self._shared = 0

    def __len__(self) -> int:
        return len(self._taken)

    def again(self, value: Any) -> Taken | None:
        """How to say that it is the one that was taken before; None: it was not."""
        found = self._taken.get(id(value))
        return None if found is None else ["same", self._number(found[1])]

    def inner(self, value: Any) -> Taken:
        """How to say that it is an object around this place: it is being taken."""
        if id(value) not in self._around:
            self._around[id(value)] = self._shared
            self._shared += 1
        return ["same", self._around[id(value)]]

    def add(self, value: Any, taken: Taken) -> None:
        number = self._around.pop(id(value), None)
        if number is not None:
            taken[:] = ["shared", number, list(taken)]
            self._taken[id(value)] = value, taken
        elif taken[0] in _ONE or (taken[0] in ("holder", "numbers") and taken[1] not in _FIXED):
            self._taken[id(value)] = value, taken

    def cut(self, count: int) -> None:
        """Forget all but the first `count`: the value that the others belong to could not be saved."""
        while len(self._taken) > count:
            self._taken.popitem()

    def find_views(self) -> None:
        """Say of tensors and arrays in another one's memory where they lie in it."""
        by_memory: dict[Any, list[tuple[Any, Taken]]] = {}
        for value, taken in self._taken.values():
            if taken[0] in ("tensor", "array") and taken[1] is value and not isinstance(value, np.generic):
                by_memory.setdefault(_memory(value), []).append((value, taken))
        for memory, held in by_memory.items():
            whole = next((one for one in held if _is_whole(one[0], memory)), None) if len(held) > 1 else None
            for value, taken in held if whole is not None else ():
                if taken is not whole[1] and _is_plain_view(value, whole[0], taken):  # type: ignore[index]
                    place = _place(value, memory)
                    taken[:] = ["view", self._number(whole[1]), *place]  # type: ignore[index]

    def _number(self, taken: Taken) -> int:
        if taken[0] != "shared":
            taken[:] = ["shared", self._shared, list(taken)]
            self._shared += 1
        number: int = taken[1]
        return number


def _memory(value: Any) -> Any:
    """Where it begins, and its size in bytes."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return value.device, storage.data_ptr(), storage.nbytes()
    while isinstance(value.base, np.ndarray):
        value = value.base
    return "numpy", value.__array_interface__["data"][0], value.nbytes


def _is_whole(value: Any, memory: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_contiguous() and 0 < value.nbytes == memory[2]
    return bool(value.flags.c_contiguous) and 0 < value.nbytes == memory[2]


def _is_plain_view(value: Any, whole: Any, taken: Taken) -> bool:
    """A tensor with a gradient, or attributes of the script's, is saved by itself."""
    return bool(value.dtype == whole.dtype) and (type(value) is not torch.nn.Parameter) and taken[3:] in (
        [False, None], []
    )  # fmt: skip


def _place(value: Any, memory: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [list(value.shape), list(value.stride()), value.storage_offset()]
    return [list(value.shape), list(value.strides), value.__array_interface__["data"][0] - memory[1]]


def make_view(live: Any, whole: Any, shape: list[int], strides: list[int], offset: int) -> Any:
    """The part of `whole`; `live` if it is that. Raises LostError."""
    if isinstance(whole, torch.Tensor):
        made: Any = whole.detach().as_strided(shape, strides, offset)
        return live if isinstance(live, torch.Tensor) and _are_alike(live, made) else made
    if np is None or not isinstance(whole, np.ndarray):
        raise LostError("what it is a part of is not there")
    made = np.ndarray(shape, whole.dtype, whole, offset, strides)
    return live if isinstance(live, np.ndarray) and _are_alike(live, made) else made


def _are_alike(one: Any, other: Any) -> bool:
    memory = _memory(one)
    return one.dtype == other.dtype and memory == _memory(other) and _place(one, memory) == _place(other, memory)


def definitions(entries: Iterable[Any]) -> dict[int, Taken]:
    """Number -> what is taken of a shared object, in all of `entries`."""
    lists = [part for part in _lists(entries) if len(part) == 3 and part[0] == "shared" and type(part[2]) is list]
    return {part[1]: part[2] for part in lists}


def has_view(entry: Any) -> bool:
    """Whether it says that something lies in another one's memory, or is another one."""
    return any(part and part[0] in ("view", "same") for part in _lists([entry]))


def _lists(entries: Iterable[Any]) -> Iterator[list[Any]]:
    parts: list[Any] = list(entries)
    while parts:
        part = parts.pop()
        if type(part) is list:
            yield part
            if part[:1] != ["contents"]:  # plain values of a script
                parts += part


def apart(taken: Any, known: dict[int, Taken]) -> Any:
    """`taken` as if nothing was shared, to be compared. known: `definitions()`."""
    if type(taken) is not list:
        return taken
    if len(taken) == 3 and taken[0] == "shared":
        return apart(taken[2], known)
    if len(taken) == 2 and taken[0] == "same" and type(taken[1]) is int:
        return apart(known.get(taken[1], taken[:1]), known)
    return [apart(part, known) for part in taken]


# ---- parts of `ff_core.state.restored.Putter` ------------------------------------------------------------------------


def put_shared(putter: Any, live: Any, taken: Taken, in_place: bool) -> Any:
    number = taken[1]
    if number not in putter.made:
        putter.number = number if taken[2][0] == "object" else None
        putter.made[number] = putter.put(live, taken[2], in_place=in_place)
    return putter.made[number]


def put_same(putter: Any, live: Any, taken: Taken, in_place: bool) -> Any:
    number = taken[1]
    if number in putter.made:
        return putter.made[number]
    if number not in putter.parts:
        raise LostError("what it is a part of cannot be saved")
    return put_shared(putter, live, ["shared", number, putter.parts[number]], in_place)


def put_view(putter: Any, live: Any, taken: Taken, in_place: bool) -> Any:
    return make_view(live, put_same(putter, None, taken[:2], in_place=False), *taken[2:])
