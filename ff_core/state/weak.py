"""What refers to objects without keeping them: dicts and sets with weak references, and a weak reference itself.

members(value)              # [(key or None, object or value), ...]: what is there now
make(kind, live, members)   # `live` itself with these members, or a new one of `kind`
"""

from __future__ import annotations

import weakref
from typing import Any

from ff_core.state import objects

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet, weakref.ReferenceType)
}


@objects.cached
def kind_of(kind: type) -> str | None:
    """The name in `KINDS` of objects of the class `kind`."""
    return next((name for name, base in KINDS.items() if kind is base), None)


def has_weak_keys(name: str) -> bool:
    """Whether the keys are what is referred to, and the values are kept."""
    return name == "WeakKeyDictionary"


def members(value: Any) -> list[tuple[Any, Any]]:
    """Key and value of each. A set's members and a reference's object have the key None."""
    if isinstance(value, (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)):
        return list(value.items())
    if isinstance(value, weakref.WeakSet):
        return [(None, part) for part in list(value)]
    return [(None, value())]


def make(name: str, live: Any, wanted: list[tuple[Any, Any]]) -> Any:
    """live: None, or what becomes so, but for a reference, which is always a new one."""
    if name == "ReferenceType":
        return weakref.ref(wanted[0][1])
    made: Any = KINDS[name]() if live is None else live
    made.clear()
    for key, value in wanted:
        if name == "WeakSet":
            made.add(value)
        else:
            made[key] = value
    return made
