"""What a data loader's objects have when an item is loaded: numbers, random generators, and what the loop has set.

values = LoadedWith(loader)
taken = values.now()                # before an item is loaded, and where a version is complete
taken.value()                       # to be encoded: path -> value, of those that have changed by now
loaded_with.put(loader, saved)      # in another process, before it loads the same item

Others than the loader change them, too: an evaluation that shares its collate_fn draws from the same generator, a
callback makes the data harder. Random states of the process are kept for each item in the same way (ff_core.state.rng).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ff_core.state import data_state, generators, objects, reach

_MOST_ITEMS = 256  # of a list or dict that is looked through
_NUMBERS = (int, float)
_KINDS = frozenset({*_NUMBERS, bool, str})
_Place = tuple[str, Any, str]
"""Path, owner, name."""


class _Changed:
    """Paths, of all iterators over a loader. It has nothing of the loader, which keeps it (see Source)."""

    def __init__(self) -> None:
        self.at_all: set[str] = set()
        self.by_loading: set[str] = set()


@dataclass(slots=True)
class Taken:
    """values: by path.  states: of generators, by path."""

    changed: _Changed
    values: dict[str, Any]
    states: dict[str, Any]

    def value(self) -> dict[str, Any]:
        """Of what has changed since the first time, also later than this was taken. A flag that loading sets is left
        out: it says what this process has done, as opening a file."""
        at_all, by_loading = self.changed.at_all, self.changed.by_loading
        values = {
            path: value
            for path, value in self.values.items()
            if path in at_all and (type(value) in _NUMBERS or path not in by_loading)
        }
        return values | {path: state for path, state in self.states.items() if path in at_all}

    def differs_from(self, other: Taken) -> set[str]:
        """Paths that both have."""
        changed: set[str] = set()
        if self.values != other.values:
            both = self.values.keys() & other.values.keys()
            changed.update(path for path in both if self.values[path] != other.values[path])
        return changed | {
            path
            for path in self.states.keys() & other.states.keys()
            if not generators.same(self.states[path], other.states[path])
        }


class LoadedWith:
    """Of attributes of objects, of the script's classes and functions, and of globals that loading asks for.

    The first one of a loader remembers what was there: what has changed with earlier iterators counts, too.
    """

    def __init__(self, loader: Any) -> None:
        parts = _parts(loader)
        self._places, self._generators = _places(loader, parts), _generators(parts)
        first: Taken | None = getattr(loader, "__dict__", {}).get("_ff_first_with")
        self._changed = _Changed() if first is None else first.changed
        self._last = self._taken()
        if first is None:
            getattr(loader, "__dict__", {})["_ff_first_with"] = self._last
        else:
            self._changed.at_all |= self._last.differs_from(first)

    def now(self, *, loaded: bool = False) -> Taken:
        """loaded: an item was loaded since the last call, and nothing else has run."""
        before, self._last = self._last, self._taken()
        changed = self._last.differs_from(before)
        self._changed.at_all |= changed
        if loaded:
            self._changed.by_loading |= changed
        return self._last

    def _taken(self) -> Taken:
        values = {path: _value(owner, name) for path, owner, name in self._places}
        return Taken(self._changed, values, {path: generators.state_of(part) for path, part in self._generators})


def _value(owner: Any, name: str) -> Any:
    """None: it is gone, or of another kind now."""
    try:
        value = data_state.value_of(owner, name)
    except (AttributeError, KeyError):
        return None
    return value if type(value) in _KINDS else None


def put(loader: Any, saved: dict[str, Any] | None) -> None:
    """What is not there is left: the item proves what it is."""
    if not saved:
        return
    for path, owner, name in _places(loader, _parts(loader)):
        value = saved.get(path)
        if value is None:
            continue
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)
    for path, part in _generators(_parts(loader)):  # what is set may make another one
        if path in saved:
            generators.set_state(part, saved[path])


def _parts(loader: Any) -> list[tuple[str, Any]]:
    return list(reach.objects(loader, _MOST_ITEMS, widely=True))


def _places(loader: Any, parts: list[tuple[str, Any]]) -> list[_Place]:
    found = list(data_state.places(loader, _MOST_ITEMS, widely=True))
    for path, part in parts:
        kinds = [kind for kind in type(part).__mro__ if objects.is_users_class(kind)]
        found += [
            (f"{path}.{kind.__qualname__}.{name}", kind, name, value)
            for kind in kinds
            for name, value in list(vars(kind).items())
        ]
    places: dict[tuple[int, str], _Place] = {}
    for path, owner, name, value in found:
        if type(value) in _KINDS and not (name.startswith("__") and name.endswith("__")):
            places.setdefault((id(owner), name), (path, owner, name))
    return list(places.values())


def _generators(parts: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(path, part) for path, part in parts if generators.is_generator(part) and not generators.is_global(part)]
