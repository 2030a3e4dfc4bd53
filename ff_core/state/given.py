"""What a script gives to what is not its own: `engine.tokens += n`, `library.SCALE = 2`, `library.Options.rate *= 0.9`.
A place of variables, as `ff_core.state.space` has them.

Owners are modules and classes of libraries, objects of torch, of the frameworks and of Python's library: those that the
script has in variables, and what is reached from them by names that stand in its code, two steps further. Of an owner
the attributes count whose names the script's code sets, new ones too. Of a library that the script imports itself also
the numbers, random generators and tensors count that its modules and classes have: it may count there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch

from ff_core.state import foreign, frames, generators, objects, values
from ff_core.state.space import Functions, Space, reference
from ff_core.state.tensor_attributes import codes_of_script, names_in, set_in

_DEPTH = 2  # from what a variable has
_MOST = 4000  # owners
_HEAP = 1 << 9  # of a class whose attributes can be set
_OTHERS = (torch.Tensor, *objects.NAMED, *objects.BASES, int, float, str, bytes)


class OfGiven(Space):
    """Names are those of the owner and the attribute: "main().engine.tokens".

    looked: path -> value of the script's variables, and of what they have.
    """

    def __init__(self, looked: Iterable[tuple[str, Any]]) -> None:
        codes = list(codes_of_script())
        self._set = frozenset(set_in(codes))
        self._owners: dict[str, Callable[[], Any]] = {}
        self._lasting: dict[str, Mapping[str, Any]] = {}  # what modules and classes have
        self._counted: set[str] = set()  # labels of owners whose numbers count
        self.left_out: list[str] = []
        """What has too many to be looked at: no more than the first."""
        for label, owner, counts in _owners(looked, frozenset(names_in(codes)), self.left_out):
            self._owners[label] = reference(owner)
            self._counted.update([label] if counts else [])
            if isinstance(owner, (ModuleType, type)):
                self._lasting[label] = vars(owner)
        self._objects = [(label, ref) for label, ref in self._owners.items() if label not in self._lasting]
        self._slots: list[tuple[str, str, str]] = []
        self._count = -1
        now = self.values({})
        super().__init__("given::", dict(now))
        del self._held
        self.known = [path for path in self.all_known if values.is_of_interest(now[path])]

    def is_name(self, name: Any) -> bool:
        return True

    def values(self, functions: Functions) -> Mapping[str, Any]:
        owners = [(label, ref()) for label, ref in self._objects]
        alive = {**self._lasting, **{label: vars(owner) for label, owner in owners if owner is not None}}
        count = sum(map(len, alive.values()))
        if count != self._count:
            self._count = count
            self._slots = [(f"{of}.{name}", of, name) for of, held in alive.items() for name in self._names(of, held)]
        return {path: alive[of][name] for path, of, name in self._slots if of in alive and name in alive[of]}

    def _names(self, of: str, held: Mapping[str, Any]) -> list[str]:
        names = [name for name in self._set if name in held]
        if of in self._counted:
            names += [name for name, value in list(held.items()) if _counts(value) and name not in self._set]
        return names

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for path, value in new.items():
            of, _, name = path.rpartition(".")
            owner = self._owners[of]() if of in self._owners else None
            if owner is not None:
                setattr(owner, name, value)

    def remove(self, functions: Functions, name: str) -> None:
        of, _, name = name.rpartition(".")
        owner = self._owners[of]()
        if name in vars(owner):
            delattr(owner, name)


def _counts(value: Any) -> bool:
    return type(value) in (int, float, torch.Tensor) or generators.is_generator(value)


def _owners(
    looked: Iterable[tuple[str, Any]], names: Collection[str], left_out: list[str]
) -> Iterator[tuple[str, Any, bool]]:
    """(label, owner, whether its numbers count). left_out: gets the first one beyond the limit."""
    level = [(path, module, True) for path, module in _modules(looked)] + [
        (path, value, True) for path, value in looked
    ]
    seen: set[int] = set()
    for depth in range(_DEPTH + 1):
        below: list[tuple[str, Any, bool]] = []
        for path, value, is_direct in level:
            if id(value) in seen or not _may_own(value):
                continue
            if len(seen) == _MOST:
                left_out.append(f"what it gives to {path}")
                return
            seen.add(id(value))
            label = _label(path, value)
            if not (_is_looked_at(value) and depth == 0):
                yield label, value, is_direct and isinstance(value, (ModuleType, type)) and _is_librarys(value)
            held = {**vars(value), **(value._modules if isinstance(value, torch.nn.Module) else {})}
            below += [(f"{label}.{name}", held[name], False) for name in names if name in held]
        level = below


def _modules(looked: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, ModuleType]]:
    """Those whose functions the script has by name."""
    for _, value in looked:
        module = sys.modules.get(value.__module__ or "") if type(value) is FunctionType else None
        if module is not None:
            yield module.__name__, module


def _label(path: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    return ".".join(objects.name_of(value)) if isinstance(value, type) else path


def _may_own(value: Any) -> bool:
    if _package(value if isinstance(value, (ModuleType, type)) else type(value)) in frames.OURS:
        return False  # where our parts are in a recovery is for themselves to know
    if isinstance(value, ModuleType):
        file = getattr(value, "__file__", None)
        return file is not None and not _is_standard(value.__name__) and not frames.is_users(file, value.__name__)
    if isinstance(value, type):
        of = value.__module__
        return bool(value.__flags__ & _HEAP) and not _is_standard(of) and not frames.is_users_module(of)
    kind = type(value)
    if issubclass(kind, _OTHERS) or not kind.__dictoffset__:
        return False
    return type(getattr(value, "__dict__", None)) is dict  # a TypeVar has none (Python 3.12), a Future neither (3.13)


def _is_looked_at(value: Any) -> bool:
    """Whether all that it has is looked at anyway, if a variable has it."""
    if isinstance(value, (ModuleType, type)):
        return False
    kind = type(value)
    return objects.is_users_class(kind) or objects.has_more(kind) or foreign.is_librarys_class(kind)


def _is_librarys(value: Any) -> bool:
    return _package(value) not in foreign.PACKAGES


def _package(owner: ModuleType | type) -> str:
    name = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    return str(name).split(".", 1)[0]


def _is_standard(module: Any) -> bool:
    return str(module).split(".", 1)[0] in sys.stdlib_module_names
