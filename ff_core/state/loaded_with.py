"""What a data loader's objects have when an item is loaded: numbers, random generators, and what the loop has set.

values = LoadedWith(loader)
taken = values.now()                # before an item is loaded, and where a version is complete
taken.value()                       # to be encoded: path -> value, of those that have changed by now
loaded_with.put(loader, saved)      # in another process, before it loads the same item

Others than the loader change them, too: an evaluation that shares its collate_fn draws from the same generator, a
callback makes the data harder. Random states of the process are kept for each item in the same way (ff_core.state.rng).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ff_core.state import data_state, generators, objects, reach

_MOST_ITEMS = 256  # of a list or dict that is looked through
_NUMBERS = (int, float)
_KINDS = frozenset({*_NUMBERS, bool, str})
_HOLDERS = frozenset({"argparse", "builtins", "collections", "functools", "types"})
_STANDARD = 2  # descriptors of standard input, output and error
_Place = tuple[str, Any, str]
"""Path, owner, name."""


class _Changed:
    """Paths, of all iterators over a loader. It has nothing of the loader, which keeps it (see Source)."""

    def __init__(self) -> None:
        self.at_all: set[str] = set()
        self.by_loading: set[str] = set()
        self.opened: dict[str, int] = {}  # numbers of open files: another process has other ones


@dataclass(slots=True)
class Taken:
    """values: by path.  states: of generators, by path."""

    changed: _Changed
    values: dict[str, Any]
    states: dict[str, Any]

    def value(self) -> dict[str, Any]:
        """Of what has changed since the first time, also later than this was taken. Left out is what says what this
        process has done, as opening a file: a flag that loading sets, the number of a file."""
        at_all, by_loading = self.changed.at_all, self.changed.by_loading
        values = {
            path: value
            for path, value in self.values.items()
            if path in at_all
            and (type(value) in _NUMBERS or path not in by_loading)
            and path not in self.changed.opened
        }
        return values | {path: state for path, state in self.states.items() if path in at_all}

    def differs_from(self, other: Taken) -> set[str]:
        """Paths, new ones too."""
        changed: set[str] = set()
        if self.values != other.values:
            before = other.values
            changed.update(path for path, value in self.values.items() if before.get(path, objects.GONE) != value)
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
        self._loader = loader
        self._list()
        first: Taken | None = getattr(loader, "__dict__", {}).get("_ff_first_with")
        self._changed = _Changed() if first is None else first.changed
        self._last = self._taken()
        if first is None:
            getattr(loader, "__dict__", {})["_ff_first_with"] = self._last
        else:
            self._changed.at_all |= self._last.differs_from(first)

    def now(self, *, loaded: bool = False) -> Taken:
        """loaded: an item was loaded since the last call, and nothing else has run."""
        if list(map(len, self._owners)) != self._lengths:  # somebody has a new attribute
            self._list()
        before, self._last = self._last, self._taken()
        changed = self._last.differs_from(before)
        if changed:
            self._changed.at_all |= changed
            self._note_opened(changed, before)
            if loaded:
                self._changed.by_loading |= changed
        return self._last

    def _list(self) -> None:
        parts = _parts(self._loader)
        held = [(path, _held(owner, name), owner, name) for path, owner, name in _places(self._loader, parts)]
        self._slots = [(path, names, name) for path, names, _, name in held if names is not None]
        self._others = [(path, owner, name) for path, names, owner, name in held if names is None]
        self._generators = _generators(parts)
        owners = {id(names): names for names in (_attributes(part) for _, part in parts) if names is not None}
        self._owners = list(owners.values())
        self._lengths = list(map(len, self._owners))

    def _taken(self) -> Taken:
        values = {path: value for path, held, name in self._slots if type(value := held.get(name)) in _KINDS}
        for path, owner, name in self._others:
            value = getattr(owner, name, None)
            if type(value) in _KINDS:
                values[path] = value
        return Taken(self._changed, values, {path: generators.state_of(part) for path, part in self._generators})

    def _note_opened(self, changed: set[str], before: Taken) -> None:
        """A number that stood for "no file" has become that of an open one, and has not changed since."""
        opened = self._changed.opened
        for path in changed:
            then, now = before.values.get(path), self._last.values.get(path)
            if path in opened:
                del opened[path]
            elif type(now) is int and now > _STANDARD and type(then) is int and then < 0 and _is_open(now):
                opened[path] = now


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except (OSError, OverflowError):
        return False
    return True


def _held(owner: Any, name: str) -> Mapping[str, Any] | None:
    """What has `name` of an owner; None: slots or a property, which must be asked for."""
    names = _attributes(owner)
    return names if names is not None and name in names else None


def _attributes(owner: Any) -> Mapping[str, Any] | None:
    if isinstance(owner, (dict, type)):
        return owner if isinstance(owner, dict) else vars(owner)
    held = getattr(owner, "__dict__", None)
    return held if type(held) is dict else None


def put(loader: Any, saved: dict[str, Any] | None) -> None:
    """What is not there is left, but for attributes of the script's objects: the item proves what it is."""
    if not saved:
        return
    parts = _parts(loader)
    places = {path: (owner, name) for path, owner, name in _places(loader, parts)}
    for path, value in saved.items():
        if type(value) not in _KINDS:
            continue
        owner, name = places.get(path) or _new_place(path, parts)
        if owner is not None:
            data_state.set_value(owner, name, value)
    for path, part in _generators(_parts(loader)):  # what is set may make another one
        if path in saved:
            generators.set_state(part, saved[path])


def _new_place(path: str, parts: list[tuple[str, Any]]) -> tuple[Any, str]:
    """For an attribute that loading makes when it is first used."""
    of, _, name = path.rpartition(".")
    return next((part for at, part in parts if at == of and objects.is_users_object(part)), None), name


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
        if type(value) in _KINDS and not (name.startswith("__") and name.endswith("__")) and not _is_pythons(owner):
            places.setdefault((id(owner), name), (path, owner, name))
    return list(places.values())


def _is_pythons(owner: Any) -> bool:
    """A queue, a lock, a thread: what it counts is of what others do with it."""
    module = type(owner).__module__.split(".", 1)[0]
    return module in sys.stdlib_module_names and module not in _HOLDERS


def _generators(parts: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(path, part) for path, part in parts if generators.is_generator(part) and not generators.is_global(part)]
