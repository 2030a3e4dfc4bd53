"""Objects that are known by their id(), which becomes another object's when they have gone.

    known = Known(objects)
    value in known              # whether it is one of them
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

_MOST = 8  # parts that tell which container it is
_MOST_LOOKED_AT = 64


class Known:
    """None of them is kept alive, but for what nobody can refer to weakly and has nothing in it either that can be: a
    list of numbers. Of a list of tensors the first few must be the same."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._by_id = {id(one): _proof(one) for one in objects}

    def __contains__(self, value: Any) -> bool:
        proof = self._by_id.get(id(value))
        if proof is None:
            return False
        if type(proof) is weakref.ref:
            return proof() is value
        if type(proof) is list:
            return proof[0] is value
        parts = list(_parts(value))
        return len(parts) == len(proof) and all(ref() is part for ref, part in zip(proof, parts, strict=True))


def _proof(value: Any) -> Any:
    """A weak reference; a tuple of those of its parts; or [value]."""
    try:
        return weakref.ref(value)
    except TypeError:
        return tuple(map(weakref.ref, _parts(value))) or [value]


def _parts(value: Any) -> Iterator[Any]:
    """The first in a container that weak references can be made to."""
    return islice(_all_parts(value), _MOST)


def _all_parts(value: Any) -> Iterator[Any]:
    level = deque([value])
    for _ in range(_MOST_LOOKED_AT):
        if not level:
            return
        one = level.popleft()
        if one is not value and type(one).__weakrefoffset__:
            yield one
        elif isinstance(one, dict):
            level.extend(islice(one.values(), _MOST_LOOKED_AT))
        elif isinstance(one, (list, tuple, set, frozenset)):
            level.extend(islice(one, _MOST_LOOKED_AT))
