"""What a script has given to the parameters and buffers of a protected model: `parameter.scale = 0.5`. A place of
variables, as `ff_core.state.space` has them.

The frameworks give them attributes, too. Those that count are the ones whose names stand in the script's own code.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from ff_core.state import frames, switched, values
from ff_core.state.space import Functions, Space

_FRAMEWORKS = ("ds_", "_ff_")
_OTHERS = frozenset({"main_grad", "grad_accum", "grad_added_to_main_grad"})
_SETS = dis.opmap["STORE_ATTR"]
_READS = frozenset(dis.opmap[name] for name in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM") if name in dis.opmap)
_FLAGGED = dis.opmap["LOAD_ATTR"] if sys.version_info >= (3, 12) else -1  # its lowest bit says that it is a call
_BY_NAME = frozenset({"setattr", "__setattr__", "__dict__", "vars"})
_READ_BY_NAME = _BY_NAME | {"getattr", "attrgetter", "methodcaller", "__getattribute__"}
_CLOSELY, _EVERY = 64, 16  # looks at which new ones are looked for


class OfTensors(Space):
    """Names are those of the tensor and the attribute: "0.weight.scale"."""

    def __init__(self) -> None:
        self._looks, self._count = 0, -1
        self._written: frozenset[str] | None = None  # names in the script's code
        self._tensors = {name: tensor for name, tensor in _named() if type(tensor.__dict__) is dict}
        self._dicts = [tensor.__dict__ for tensor in self._tensors.values()]
        self._slots: list[tuple[str, dict[str, Any], str]] = []
        held = self.values({})
        super().__init__("tensors::", dict(held))
        del self._held
        self.known = [path for path in self.all_known if values.is_of_interest(held[path])]

    def is_name(self, name: Any) -> bool:
        return True

    def values(self, functions: Functions) -> Mapping[str, Any]:
        self._looks += 1
        if self._looks <= _CLOSELY or self._looks % _EVERY == 0:
            self._look()
        return {path: held[name] for path, held, name in self._slots if name in held}

    def _look(self) -> None:
        count = sum(map(len, self._dicts))
        if count == self._count:
            return
        self._count = count
        if self._written is None and count:
            names = names_in(codes_of_script())
            self._written = frozenset(n for n in names if n not in _OTHERS and not n.startswith(_FRAMEWORKS))
        written = self._written or frozenset()
        pairs = zip(self._tensors, self._dicts, strict=True)
        self._slots = [(f"{of}.{name}", held, name) for of, held in pairs if held for name in held if name in written]

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for path, value in new.items():
            of, _, name = path.rpartition(".")
            if of in self._tensors:
                setattr(self._tensors[of], name, value)
        self._count = -1

    def remove(self, functions: Functions, name: str) -> None:
        of, _, name = name.rpartition(".")
        self._tensors[of].__dict__.pop(name, None)
        self._count = -1


def _named() -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of the protected models."""
    for number, model in enumerate(switched.roots()):
        start = f"model {number}, " if number else ""
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            yield start + name, tensor


def codes_of_script() -> Iterator[CodeType]:
    """All of the script's own code."""
    codes = [frame.f_code for frame in frames.of_script()]
    for name in frames.users_modules():
        codes += _codes(vars(sys.modules[name]).values(), name)
    seen: set[CodeType] = set()
    while codes:
        code = codes.pop()
        if code not in seen:
            seen.add(code)
            yield code
            codes += [part for part in code.co_consts if isinstance(part, CodeType)]


def names_in(codes: Iterable[CodeType]) -> set[str]:
    """Names of attributes and functions, and texts that may be names."""
    return {name for code in codes for name in (*code.co_names, *_texts(code))}


def set_in(codes: Iterable[CodeType]) -> set[str]:
    """Names of attributes that are set, and texts that may be such names where a name is a value."""
    return _attributes(codes, frozenset({_SETS}), _BY_NAME)


def used_in(codes: Iterable[CodeType]) -> set[str]:
    """Names of attributes that are read or set, or imported from a module, and texts as in set_in. Not those of
    variables and modules: `import numpy` uses no attribute of that name."""
    return _attributes(codes, _READS | {_SETS}, _READ_BY_NAME)


def _attributes(codes: Iterable[CodeType], opcodes: frozenset[int], by_name: frozenset[str]) -> set[str]:
    found: set[str] = set()
    for code in codes:
        if not by_name.isdisjoint(code.co_names):
            found.update(_texts(code))
        extended = 0
        for opcode, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
            extended = extended << 8 | argument
            if opcode in opcodes:
                found.add(code.co_names[extended >> (opcode == _FLAGGED)])
            if opcode != dis.EXTENDED_ARG:
                extended = 0
    return found


def _texts(code: CodeType) -> list[str]:
    return [part for part in code.co_consts if isinstance(part, str) and part.isidentifier()]


def _codes(held: Iterable[Any], module: str) -> Iterator[CodeType]:
    for value in list(held):
        # By their types: an object of the script's own may answer any name, or fail to.
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, (classmethod, staticmethod, MethodType)):
            value = value.__func__
        if isinstance(value, FunctionType):
            yield from (function.__code__ for function in _unwrapped(value))
        elif isinstance(value, type) and value.__module__ == module:
            yield from _codes(vars(value).values(), module)


def _unwrapped(function: FunctionType) -> Iterator[FunctionType]:
    """The function, and what its decorators have put inside."""
    part: Any = function
    while isinstance(part, FunctionType):
        yield part
        part = vars(part).get("__wrapped__")
