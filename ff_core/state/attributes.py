"""What a model remembers in plain Python attributes: a count in `forward`, a dropout rate that a script changes.

torch saves parameters and buffers. A module may also have a number, a short list, a random generator, or a tensor that
is no buffer, and these may decide about later iterations only. What changes after the start of training is saved with
every version from then on, and put back in survivor and replacement.

    attributes = Attributes(Members(model))
    attributes.begin()              # training starts: what is there now need not be saved
    saved = attributes.save()       # what has changed since, to be encoded
    attributes.load(saved)

Looked at: attributes of every module, and of the objects that they have (a configuration), one level deep. Of torch's
own classes only the numbers with a fraction, such as a dropout rate. What is too large to be saved is said once, by
name.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch

from ff_core.state import objects
from ff_core.state.attribute_values import cloned, is_known, mark_of, put, taken
from ff_core.state.members import Members
from ff_core.state.values import PLAIN
from ff_core.state.words import some_of

log = logging.getLogger("ff_core")

MOST_BYTES = 1 << 20
"""Of tensors in attributes, all together: they are encoded in every iteration."""
CACHE_BYTES = 64 << 10
"""A larger tensor is taken for a cache, which forward makes again, until it changes a second time."""

_TORCHS = frozenset(vars(torch.nn.Module())) | {"_compiled_call_impl"}  # switches, buffers and hooks have others
_NO_HOLDERS = (torch.nn.Module, torch.Tensor, type, types.FunctionType, types.MethodType, functools.partial)
_GONE = objects.GONE

LARGE = (
    "the model changes its attribute {what} while it trains. These are tensors of more than 1 MiB in all, too many to "
    "be saved with every version, so a replacement of a dead rank begins without them. If they are more than a cache, "
    "make them buffers: register_buffer(name, tensor)"
)


class Attributes:
    """Of one model. Until begin() nothing is saved."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._modules: list[torch.nn.Module] = []
        self._dicts: list[dict[str, Any]] = []
        self._lengths: list[int] = []
        self._paths: list[str] = []
        self._slots: list[tuple[dict[str, Any], str]] = []  # as many as paths: where the attribute is
        self._live: list[Any] = []  # what was there when it was looked at last
        self._start: dict[str, Any] = {}  # path -> value when training began, as taken() gives it
        self._at_start: frozenset[str] = frozenset()
        self._in_place: dict[str, Any] = {}  # path -> value that can be written in place
        self._marks: dict[str, Any] = {}  # path -> what shows that it was
        self._changed: dict[str, int] = {}  # path -> in how many versions it has changed, at most 2
        self._said = False

    def begin(self) -> None:
        """Training starts."""
        self._list()
        self._start = {
            path: taken(value) for path, value in zip(self._paths, self._live, strict=True) if is_known(value)
        }
        self._at_start = frozenset(self._paths)
        self._changed = {}

    def save(self) -> dict[str, Any]:
        """path -> value of what has changed since begin(); tensors are the live ones. Whoever calls this has looked at
        the members."""
        self._look()
        if not self._changed:
            return {}
        places = dict(zip(self._paths, self._slots, strict=True))
        saved: dict[str, Any] = {}
        large, room = [], MOST_BYTES
        for path, times in self._changed.items():
            owner, name = places.get(path, ({}, ""))
            value = owner.get(name, _GONE)
            if torch.is_tensor(value):
                if value.nbytes > CACHE_BYTES and times < 2:
                    continue
                room -= value.nbytes
                if room < 0:
                    large.append(path)
                    continue
            if value is _GONE:
                saved[path] = ["gone"]
            elif is_known(value):
                saved[path] = taken(value, share=True)
        if large and not self._said:
            self._said = True
            log.warning("%s", LARGE.format(what=some_of(large)))
        return saved

    def copy(self) -> dict[str, Any]:
        """save(), as it is now whatever is written later."""
        self._members.look()
        return {path: cloned(value) for path, value in self.save().items()}

    def load(self, saved: dict[str, Any]) -> None:
        """Put `save()` back, in the process that gave it or in a replacement that is the same by now but for these."""
        self._members.look()
        self._look()
        places = dict(zip(self._paths, self._slots, strict=True))
        for path in [*self._changed, *(path for path in saved if path not in self._changed)]:
            place = places.get(path) or self._place(path)
            if place is None:
                continue
            if path in saved:
                self._changed[path] = 2
                put(place, saved[path])
                continue
            live = place[0].get(place[1])
            if torch.is_tensor(live) and live.nbytes > CACHE_BYTES:
                continue
            if path in self._start:
                put(place, self._start[path])
            elif path not in self._at_start:
                put(place, ["gone"])
        self._list()

    # ---- looking ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find what has changed since the last look."""
        if self._members.modules is not self._modules or list(map(len, self._dicts)) != self._lengths:
            self._list_again()
            return
        live = [owner.get(name, _GONE) for owner, name in self._slots]
        written = [path for path, mark in self._marks.items() if mark != mark_of(self._in_place[path])]
        if not written and all(map(is_, live, self._live)):
            return
        pairs = zip(self._paths, self._live, live, strict=True)
        exchanged = [(path, old, new) for path, old, new in pairs if old is not new]
        self._live = live
        gone = {path for path, _, _ in exchanged}
        same = [(path, self._in_place[path], self._in_place[path]) for path in written if path not in gone]
        for path, old, new in [*exchanged, *same]:
            self._note(path, old, new)
            self._mark(path, new)

    def _list_again(self) -> None:
        before, marks = dict(zip(self._paths, self._live, strict=True)), self._marks
        self._list()
        now = dict(zip(self._paths, self._live, strict=True))
        for path in before.keys() | now.keys():
            old, new = before.get(path, _GONE), now.get(path, _GONE)
            if old is not new or marks.get(path) != self._marks.get(path):
                self._note(path, old, new)

    def _note(self, path: str, old: Any, new: Any) -> None:
        """`path` has become `new`, or the same object was written in place."""
        if old is not new and type(old) in PLAIN and type(old) is type(new) and old == new:
            return
        if is_known(old) or is_known(new):
            self._changed[path] = min(self._changed.get(path, 0) + 1, 2)

    def _mark(self, path: str, value: Any) -> None:
        mark = mark_of(value)
        if mark is None:
            self._marks.pop(path, None)
            self._in_place.pop(path, None)
        else:
            self._marks[path], self._in_place[path] = mark, value

    def _list(self) -> None:
        self._modules = self._members.modules
        named = self._members.model.named_modules()
        found = [
            (f"{prefix}.{name}" if prefix else name, owner, name)
            for prefix, owner, names in _owners(named)
            for name in names
        ]
        self._paths = [path for path, _, _ in found]
        self._slots = [(owner, name) for _, owner, name in found]
        self._live = [owner[name] for owner, name in self._slots]
        self._marks, self._in_place = {}, {}
        for path, value in zip(self._paths, self._live, strict=True):
            self._mark(path, value)
        dicts = {id(owner): owner for owner in chain(map(vars, self._modules), (owner for owner, _ in self._slots))}
        self._dicts = list(dicts.values())
        self._lengths = list(map(len, self._dicts))

    def _place(self, path: str) -> tuple[dict[str, Any], str] | None:
        """Where an attribute belongs that is not there (yet)."""
        owner, _, name = path.rpartition(".")
        try:
            return vars(self._members.model.get_submodule(owner)), name
        except AttributeError:
            return None


def _owners(modules: Any) -> Iterator[tuple[str, dict[str, Any], Sequence[str]]]:
    """(path of the owner, its attributes, names of those that are looked at)."""
    seen: set[int] = set()
    for prefix, module in modules:
        own = vars(module)
        if type(module).__module__.startswith("torch.nn."):
            yield prefix, own, [name for name, value in own.items() if type(value) is float]
            continue
        yield prefix, own, [name for name in own if _is_of_interest(name) and name not in _TORCHS]
        for name, value in list(own.items()):
            if name not in _TORCHS and _is_users(value) and id(value) not in seen:
                seen.add(id(value))
                path = f"{prefix}.{name}" if prefix else name
                yield path, vars(value), [inner for inner in vars(value) if _is_of_interest(inner)]


def _is_of_interest(name: Any) -> bool:
    return isinstance(name, str) and not name.startswith(("_ff_", "ds_", "__"))


def _is_users(value: Any) -> bool:
    """An object with attributes of a class that somebody wrote who is neither torch nor a library around it."""
    if isinstance(value, _NO_HOLDERS):
        return False
    kind = type(value).__module__.split(".", 1)[0]
    return type(getattr(value, "__dict__", None)) is dict and kind not in ("torch", "deepspeed", "megatron", "ff_core")
