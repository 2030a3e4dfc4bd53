"""Whether a function of the script seems to give the same whenever it is asked: what a cache has forgotten of such a
function, it computes again.

It does not seem so if its code, or that of functions of the script that it calls, draws random numbers, asks for the
time, takes the next item of an iterator, or sets variables or attributes of others.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ff_core.state import frames, generators, reach

_DEPTH = 3  # functions that it calls
_SETS = {dis.opmap[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR")}
_SETS_BOUND = dis.opmap["STORE_DEREF"]
#: Of modules: what gives something else each time.
_DRAWS = {
    "random": None,
    "secrets": None,
    "time": None,
    "uuid": None,
    "numpy": frozenset({"random"}),
    "numpy.random": None,
    "os": frozenset({"urandom", "getpid"}),
    "datetime": frozenset({"now", "today", "utcnow"}),
    "torch": frozenset({
        "bernoulli", "multinomial", "normal", "poisson", "rand", "rand_like", "randint", "randint_like", "randn",
        "randn_like", "randperm", "dropout",
    }),
}  # fmt: skip


def seems_pure(function: FunctionType, *arguments: Any) -> bool:
    """arguments: of one call, whose attributes it may use."""
    return not any(_is_impure(each) for each in _called(function, _DEPTH)) and not any(
        generators.is_generator(getattr(argument, "__dict__", {}).get(name))
        for argument in arguments
        for name in function.__code__.co_names
    )


def _called(function: FunctionType, depth: int) -> Iterator[FunctionType]:
    yield function
    for _, value in _used(function) if depth else ():
        if type(value) is FunctionType and frames.is_users(value.__code__.co_filename, value.__module__):
            yield from _called(value, depth - 1)


def _used(function: FunctionType) -> list[tuple[str, Any]]:
    """What it uses by name: of its module, and what it has bound."""
    code, held = function.__code__, function.__globals__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    bound = [(name, cell.cell_contents) for name, cell in cells if reach.is_filled(cell)]
    names = [name for part in _within(code) for name in part.co_names]
    defaults = [("", value) for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())]
    return [*bound, *((name, held[name]) for name in names if name in held), *defaults]


def _is_impure(function: FunctionType) -> bool:
    codes = list(_within(function.__code__))
    names = {name for code in codes for name in code.co_names}
    if "next" in names or any(_sets(code) for code in codes):
        return True
    return any(_draws(value, names) for _, value in _used(function))


def _draws(value: Any, names: set[str]) -> bool:
    if generators.is_generator(value) or hasattr(type(value), "__next__"):
        return True
    if isinstance(value, (ModuleType, type)):
        among = _DRAWS.get(value.__name__, frozenset())
        return among is None or not among.isdisjoint(names)
    owner = getattr(value, "__self__", None)  # from random import uniform
    return generators.is_generator(owner) or (isinstance(owner, ModuleType) and _draws(owner, {value.__name__}))


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _within(part)


def _sets(code: CodeType) -> bool:
    """Whether it sets a variable of its module, or of the function around it."""
    for each in dis.get_instructions(code):
        if each.opcode in _SETS or (each.opcode == _SETS_BOUND and each.argval in code.co_freevars):
            return True
    return False
