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
    """Which places have changed. It has nothing of the loader: an iterator's loader may keep it (see Source)."""

    def __init__(self, paths: list[str], generators: list[str]) -> None:
        self.paths, self.generators = paths, generators
        self._changed: set[str] = set()
        self._by_loading: set[str] = set()

    def compare(self, before: Taken, now: Taken, loaded: bool) -> None:
        changed: set[str] = set()
        if before.values != now.values:
            pairs = zip(self.paths, before.values, now.values, strict=True)
            changed.update(path for path, old, new in pairs if old != new)
        states = zip(self.generators, before.states, now.states, strict=True)
        changed.update(path for path, old, new in states if not generators.same(old, new))
        self._changed |= changed
        if loaded:
            self._by_loading |= changed

    def of(self, taken: Taken) -> dict[str, Any]:
        """A flag that loading sets is left out: it says what this process has done, as opening a file."""
        if not self._changed:
            return {}
        values = dict(zip(self.paths, taken.values, strict=True))
        flags = {path for path in self._by_loading if type(values.get(path)) not in _NUMBERS} - set(self.generators)
        values.update(zip(self.generators, taken.states, strict=True))
        return {path: values[path] for path in sorted(self._changed - flags)}


@dataclass(slots=True)
class Taken:
    """values: of all places, in their order.  states: of all generators."""

    changed: _Changed
    values: list[Any]
    states: list[Any]

    def value(self) -> dict[str, Any]:
        """Of the places that have changed since the first, also later than this was taken."""
        return self.changed.of(self)


class LoadedWith:
    """Of attributes of objects, of the script's classes and functions, and of globals that loading asks for.

    The first one of a loader remembers what was there: what has changed with earlier iterators counts, too.
    """

    def __init__(self, loader: Any) -> None:
        self._places, self._generators = _places(loader), _generators(loader)
        paths, of_generators = [place[0] for place in self._places], [path for path, _ in self._generators]
        first: Taken | None = getattr(loader, "__dict__", {}).get("_ff_first_with")
        if first is not None and (first.changed.paths, first.changed.generators) == (paths, of_generators):
            self._changed = first.changed
            self._last = self._taken()
            self._changed.compare(first, self._last, loaded=False)
        else:
            self._changed = _Changed(paths, of_generators)
            self._last = self._taken()
            getattr(loader, "__dict__", {})["_ff_first_with"] = self._last

    def now(self, *, loaded: bool = False) -> Taken:
        """loaded: an item was loaded since the last call, and nothing else has run."""
        before, self._last = self._last, self._taken()
        self._changed.compare(before, self._last, loaded)
        return self._last

    def _taken(self) -> Taken:
        values = [_value(owner, name) for _, owner, name in self._places]
        return Taken(self._changed, values, [generators.state_of(part) for _, part in self._generators])


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
    for path, owner, name in _places(loader):
        value = saved.get(path)
        if value is None:
            continue
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)
    for path, part in _generators(loader):
        if path in saved:
            generators.set_state(part, saved[path])


def _places(loader: Any) -> list[_Place]:
    found = list(data_state.places(loader, _MOST_ITEMS, widely=True))
    for path, part in reach.objects(loader, _MOST_ITEMS, widely=True):
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


def _generators(loader: Any) -> list[tuple[str, Any]]:
    parts = reach.objects(loader, _MOST_ITEMS, widely=True)
    return [(path, part) for path, part in parts if generators.is_generator(part) and not generators.is_global(part)]
