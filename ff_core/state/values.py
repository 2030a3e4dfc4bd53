"""A script's values: of which kinds they are, what they are called in a message, which tensors they have."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from itertools import islice
from pathlib import PosixPath, PurePosixPath
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodWrapperType
from typing import Any

import torch

from ff_core.state import caches, foreign, frames, generators, objects, standard, weak
from ff_core.state.fingerprint import Fingerprint
from ff_core.state.placed import Placed

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

PLAIN = frozenset({bool, int, float, str, type(None)})
SCALARS = frozenset({complex, bytes, bytearray, datetime.timedelta, torch.dtype, torch.device, torch.Size})
HOLDERS = frozenset({list, tuple, deque, set, frozenset, dict, OrderedDict, Counter, defaultdict})
#: What never changes and is known by a text. kind -> how to make one of it.
WRITTEN_AS: dict[type, Callable[[str], Any]] = {
    PosixPath: PosixPath,
    PurePosixPath: PurePosixPath,
    Fraction: Fraction,
    Decimal: Decimal,
    datetime.datetime: datetime.datetime.fromisoformat,
    datetime.date: datetime.date.fromisoformat,
}
_OVER_HELD: tuple[Any, ...] = ([], (), range(1), range(1 << 70), "a", "\u00e9")
IN_LINE = frozenset({type(iter(held)) for held in _OVER_HELD})
"""Iterators over a list, a text or a range."""
MAKERS: dict[str, Any] = {
    made.__name__: made
    for made in (itertools.count, itertools.cycle, itertools.chain, itertools.islice, itertools.repeat, enumerate, zip,
                 map, reversed, iter, filter, itertools.accumulate, itertools.combinations,
                 itertools.combinations_with_replacement, itertools.compress, itertools.dropwhile,
                 itertools.filterfalse, itertools.permutations, itertools.product, itertools.starmap,
                 itertools.takewhile, itertools.zip_longest)
}  # fmt: skip
"""Of iterators, by name."""
UNPLACED: frozenset[type] = frozenset(
    {
        itertools.groupby,
        itertools.pairwise,
        type(itertools.tee(())[0]),
        getattr(itertools, "batched", itertools.pairwise),
    }
)
"""Iterators that hold items back, which Python does not show."""
ITERATORS: frozenset[type] = IN_LINE | UNPLACED | {
    *(made for made in MAKERS.values() if made is not iter),
    type(reversed([])), type(iter({})), type(iter({}.values())), type(iter({}.items())), type(iter(int, 1)),
}  # fmt: skip
_WITH_NEXT = ITERATORS | {GeneratorType}
WRITTEN = (torch.Tensor, torch.nn.Module)
NUMBERS: tuple[type, ...] = (int, float, str) if np is None else (int, float, str, np.generic)
"""And what is made from them."""
_MOST_TENSORS = 256  # of one model whose contents are looked at: an average writes into all of them
_MOST_HELD = 1000  # of a list or dict
MOST_ITEMS = 10_000
"""Of lists and dicts that are saved, all together."""
_LOADER_ITERATOR = ("torch.utils.data.dataloader", "_BaseDataLoaderIter")
_SHOWN = 40  # characters of a value in a message


def is_variable(name: Any) -> bool:
    """Whether a script has given a variable this name."""
    return isinstance(name, str) and name.isidentifier() and not name.startswith("__")


def is_fixed(value: Any) -> bool:
    """Whether the value never changes: a variable is given another one."""
    kind = type(value)
    return kind in PLAIN or kind in WRITTEN_AS or kind is BuiltinFunctionType or isinstance(value, (type, Enum))


def is_of_interest(value: Any) -> bool:
    """Whether a variable of this value is looked at."""
    kind = type(value)
    if kind in PLAIN or objects.base_of(kind) is not None or kind in SCALARS or kind in ITERATORS or is_next(value):
        return True
    if kind is GeneratorType:
        frame = value.gi_frame
        return frame is not None and frames.is_users(frame.f_code.co_filename, frame.f_globals.get("__name__"))
    if kind is FunctionType:
        return value.__closure__ is None  # the variables of one that has bound some are looked at themselves
    if standard.is_kind(kind) or foreign.is_librarys_class(kind) or is_loader_iterator(kind):
        return True
    if weak.kind_of(kind) is not None or (kind is caches.KIND and caches.is_users(value)):
        return True
    if isinstance(value, (*WRITTEN, *NUMBERS)) or generators.is_generator(value) or is_fixed(value):
        return True
    return (np is not None and isinstance(value, np.ndarray)) or objects.is_users_object(value)


def is_next(value: Any) -> bool:
    """Whether it is `iterator.__next__`: an iterator that is in no variable, most likely."""
    return type(value) is MethodWrapperType and type(value.__self__) in _WITH_NEXT


@objects.cached
def is_loader_iterator(kind: type) -> bool:
    """What `iter()` of a DataLoader gives: torch's own, or an adapter's in its place."""
    return issubclass(kind, Placed) or any(
        (base.__module__, base.__name__) == _LOADER_ITERATOR for base in kind.__mro__
    )


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """`value` itself, those of a model, or those in a list or dict."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from _spread(objects.tensors_of(value))
    else:
        base = objects.base_of(type(value))
        if base is not None:
            items = dict.values(value) if issubclass(base, dict) else base.__iter__(value)  # type: ignore[attr-defined]
            yield from (item for item in islice(items, _MOST_HELD) if isinstance(item, torch.Tensor))


def all_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers. Megatron-LM's models have a list under the name of the method."""
    return [*torch.nn.Module.parameters(model), *torch.nn.Module.buffers(model)]


def _spread(tensors_of: list[torch.Tensor]) -> list[torch.Tensor]:
    """At most so many, from begin to end."""
    return tensors_of[:: -(-len(tensors_of) // _MOST_TENSORS) or 1]


def reduced(iterator: Any) -> tuple[Any, tuple[Any, ...], Any] | None:
    """(what makes one like it, of which arguments, its place or None). None: this Python does not say."""
    try:
        parts = iterator.__reduce__()
    except (AttributeError, TypeError):
        return None
    return parts[0], parts[1], parts[2] if len(parts) > 2 else None


def place_of(function: FunctionType) -> str:
    """Where a function stands in the script: one that is made anew is the same."""
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno} {function.__qualname__}"


def text(value: Any, mark: Any) -> str | None:
    """Equal in another process exactly if the value is, of what cannot be saved. None: not known."""
    if type(value) is GeneratorType or is_loader_iterator(type(value)):
        return repr(mark)
    if type(value) is FunctionType:
        return place_of(value)
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
        return Fingerprint(value.detach()).value()
    return None


def of_kind(value: Any) -> str:
    """For a message about what cannot be saved."""
    base = objects.base_of(type(value))
    return shown(value) if base is None else f"a {type(value).__qualname__} of {len(value)}"


def shown(value: Any) -> str:
    """For a message."""
    kind = type(value)
    if generators.is_generator(value):
        return "another state"
    if objects.base_of(kind) is not None:
        return f"{len(value)} entries"
    if is_loader_iterator(kind):
        return "an iterator of a DataLoader"
    text = repr(value) if kind in PLAIN else kind.__qualname__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
