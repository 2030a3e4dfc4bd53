"""Caches of functions (`functools.cache`, `functools.lru_cache`): what is in one, and how to fill one.

    entries(cache)          # [Entry(args, kwargs, value), ...], the one that was used longest ago first
    fill(cache, entries)

Python gives no way to either. The garbage collector is asked what a cache refers to. It is filled by calls of its
function, whose code gives what the entry has to be meanwhile, in this thread. Counts of hits and misses begin anew.
"""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, NamedTuple

from ff_core.state import frames, purity

KIND: type = type(functools.cache(lambda: None))
MOST = 256
"""Entries. A cache that has more is left alone if its function seems to be pure."""


_pure: weakref.WeakKeyDictionary[FunctionType, bool] = weakref.WeakKeyDictionary()


class Entry(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any


def is_users(cache: Any) -> bool:
    """Whether it is one of a function of the script's own that can be read and filled."""
    function = getattr(cache, "__wrapped__", None)
    return (
        type(function) is FunctionType
        and frames.is_users(function.__code__.co_filename, function.__module__)
        and function in gc.get_referents(cache)
        and _can_be_read()
    )


def is_left(cache: Any) -> bool:
    """Whether it has many entries, and they can be computed again."""
    return bool(cache.cache_info().currsize > MOST) and seems_pure(cache)


def seems_pure(cache: Any) -> bool:
    """See `ff_core.state.purity`."""
    function = cache.__wrapped__
    if function not in _pure:
        keys = _parts(cache)[0][:1]
        arguments = _entry(keys[0], None, False, None).args if keys else ()
        if not arguments:
            return purity.seems_pure(function)
        _pure[function] = purity.seems_pure(function, *arguments)
    return _pure[function]


def mark(cache: Any) -> Any:
    """Another one if entries were made, or used: that decides which one a full cache drops."""
    found = cache.cache_info()
    return found.misses if found.maxsize is None else tuple(found)


def results(cache: Any) -> list[Any]:
    """The values of its entries."""
    return _parts(cache)[1]


def entries(cache: Any) -> list[Entry]:
    keys, held, divider = _parts(cache)
    typed = cache.cache_parameters()["typed"]
    return [_entry(key, value, typed, divider) for key, value in zip(keys, held, strict=True)]


def _parts(cache: Any) -> tuple[list[Any], list[Any], Any]:
    """Keys, values, and what stands before names of arguments in a key."""
    referents = gc.get_referents(cache)
    place = max(index for index, part in enumerate(referents) if part is cache.__wrapped__)
    held, divider, link = referents[place - 1], referents[place + 1], referents[place + 2]
    if cache.cache_info().maxsize is None:
        return list(held), list(held.values()), divider
    linked = referents[place - 1 - 3 * len(held) : place - 1]
    if any(part is not link for part in linked[2::3]):
        raise ValueError("this Python keeps a cache in another way")
    return linked[::3], linked[1::3], divider


def _entry(key: Any, value: Any, typed: bool, divider: Any) -> Entry:
    if type(key) is not tuple:  # one number or text
        return Entry((key,), {}, value)
    count = next((index for index, part in enumerate(key) if part is divider), None)
    if count is None:
        return Entry(key[: len(key) // 2] if typed else key, {}, value)
    named = key[count + 1 :]
    named = named[: 2 * ((len(named) - count) // 3)] if typed else named
    return Entry(key[:count], dict(zip(named[::2], named[1::2], strict=True)), value)


def key_of(entry: Entry) -> Any:
    """What tells it from the others."""
    parts = (*entry.args, *entry.kwargs.values())
    return entry.args, tuple(entry.kwargs.items()), tuple(map(type, parts))


def are_same(some: list[Entry], others: list[Entry]) -> bool:
    """Whether they are for the same arguments, with the very values, in the same order."""
    return len(some) == len(others) and all(
        key_of(one) == key_of(other) and one.value is other.value for one, other in zip(some, others, strict=True)
    )


def fill(cache: Any, wanted: Iterable[Entry]) -> None:
    """Make `wanted` its entries, in this order."""
    cache.cache_clear()
    function, thread = cache.__wrapped__, threading.get_ident()
    own = FunctionType(function.__code__, function.__globals__, function.__name__, None, function.__closure__)
    given: list[Any] = [None]

    def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return given[0] if threading.get_ident() == thread else own(*args, **kwargs)

    kept = function.__code__
    function.__code__ = _code_of(answer, kept.co_freevars)
    try:
        for entry in wanted:
            given[0] = entry.value
            cache(*entry.args, **entry.kwargs)
    finally:
        function.__code__ = kept


def _asks(*args: Any, **kwargs: Any) -> Any:
    ask: Any = "answer"
    return ask(args, kwargs)


def _code_of(answer: Callable[..., Any], bound: tuple[str, ...]) -> Any:
    """Of a function that takes all arguments and gives `answer` of them. bound: names that it has to bind."""
    code = _asks.__code__
    consts = tuple(answer if part == "answer" else part for part in code.co_consts)
    return code.replace(co_consts=consts, co_freevars=bound)


@functools.cache
def _can_be_read() -> bool:
    """Whether this Python shows what the functions above rely on."""

    def tried(*_: Any, **__: Any) -> int:
        return 1

    for typed, size in ((False, None), (False, 3), (True, None), (True, 3)):
        cache = functools.lru_cache(size, typed)(tried)
        wanted = [Entry((1, "a"), {"b": 2.0}, 5), Entry((7,), {}, [6]), Entry(((1,),), {}, 7)]
        try:
            fill(cache, wanted)
            if entries(cache) != wanted:
                return False
        except (IndexError, TypeError, ValueError):
            return False
    return True
