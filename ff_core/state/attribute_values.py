"""Values of a model's plain attributes: which can be saved, whether they were written, how they are put back.

Variables of a script have more kinds (`ff_core.state.captured`). What both save by name, a class or a function, is
described in `ff_core.state.objects`.
"""

from __future__ import annotations

import copy
from collections import deque
from itertools import chain
from typing import Any

import torch

from ff_core.errors import DifferenceError
from ff_core.state import generators, objects
from ff_core.state.room import LostError
from ff_core.state.values import PLAIN

MOST_ITEMS = 1000
"""Of one list or dict that is looked at."""

#: What `_put_items` can make, and tuples, which are put back whole.
_MADE: dict[str, Any] = {"deque": deque, "list": list, "dict": dict, "set": set}
_HOLDERS = frozenset({tuple, *_MADE.values()})
_GONE = objects.GONE

NOT_THERE = (
    "the dead rank's model had another function or class as its attribute {attribute}, and in this process {what}. "
    "Import its module before the training loop"
)


def is_known(value: Any) -> bool:
    kind = type(value)
    if kind in PLAIN:
        return True
    if kind in _HOLDERS:
        return len(value) <= MOST_ITEMS and _are_plain(value)
    if isinstance(value, objects.NAMED):
        return objects.is_found(value)
    return (kind is torch.Tensor and not value.requires_grad) or generators.is_generator(value)


def _are_plain(held: Any) -> bool:
    items = chain(held, held.values()) if type(held) is dict else held
    return all(type(item) in PLAIN or (type(item) in (tuple, list) and _are_plain(item)) for item in items)


def mark_of(value: Any) -> Any:
    """Something that is another one when `value` was written in place; None if it cannot be."""
    kind = type(value)
    if kind in PLAIN or kind is tuple:
        return None
    if kind in _HOLDERS:
        return repr(value) if len(value) <= MOST_ITEMS and _are_plain(value) else len(value)
    if kind is torch.Tensor:
        return -1 if value.is_inference() else value._version
    return generators.digest(value) if generators.is_generator(value) else None


def taken(value: Any, *, share: bool = False) -> Any:
    """[kind, value], to be encoded. share: a tensor as it is, not a copy."""
    kind = type(value)
    if kind in PLAIN or kind is tuple:
        return ["plain", value]
    if isinstance(value, objects.NAMED):
        return ["named", objects.name_of(value)]
    if kind is deque:
        return ["deque", list(value), value.maxlen]
    if kind in _HOLDERS:
        return [kind.__name__, copy.deepcopy(value)]
    if kind is torch.Tensor:
        return ["tensor", value if share else value.detach().clone(), str(value.device)]
    return ["generator", generators.state_of(value)]


def cloned(taken: list[Any]) -> list[Any]:
    return [item.detach().clone() if torch.is_tensor(item) else item for item in taken]


def put(place: tuple[dict[str, Any], str], taken: list[Any]) -> None:
    owner, name = place
    live = owner.get(name, _GONE)
    kind = taken[0]
    value: Any = taken[1] if len(taken) > 1 else None
    if kind == "gone":
        owner.pop(name, None)
    elif kind == "generator":
        if generators.is_generator(live):
            generators.set_state(live, value)
    elif kind == "tensor":
        if type(live) is torch.Tensor and (live.shape, live.dtype) == (value.shape, value.dtype):
            with torch.no_grad():
                live.copy_(value)
        else:
            owner[name] = value.to(torch.device(taken[2]), copy=True)
    elif kind in ("plain", "named"):
        owner[name] = value if kind == "plain" else _found(name, value)
    else:
        _put_items(owner, name, live, taken)


def _found(attribute: str, name: objects.Name) -> Any:
    try:
        return objects.by_name(name)
    except LostError as error:
        raise DifferenceError(NOT_THERE.format(attribute=attribute, what=error)) from None


def _put_items(owner: dict[str, Any], name: str, live: Any, taken: list[Any]) -> None:
    """In place, as others may hold the very list."""
    kind, value = taken[0], copy.deepcopy(taken[1])
    made = _MADE[kind]
    if type(live) is not made or (kind == "deque" and live.maxlen != taken[2]):
        live = owner[name] = deque(maxlen=taken[2]) if kind == "deque" else made()
    live.clear()
    live.update(value) if kind in ("dict", "set") else live.extend(value)
