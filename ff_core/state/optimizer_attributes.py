"""What an optimizer has besides its parameter groups and their state: attributes of its own.

Numbers there, such as a count of its steps, are saved with the scalars (`Numbers`). Anything else must be no memory:
after a step it has to be what the saved state and the gradients make of it. A trial (`optimizer_trial`) shows whether
that is so, on copies of the attributes.
"""

from __future__ import annotations

import copy
import functools
import random
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from ff_core.errors import UnsupportedError
from ff_core.units import format_bytes

MOST_BYTES = 1 << 20
"""Of tensors in attributes. More of them is likely state of the parameters."""
MOST_VALUES = 100_000
"""That are looked at in one attribute."""

_PLAIN = (bool, int, float, str, type(None))
_LEAVES = (*_PLAIN, complex, bytes, torch.Tensor, torch.Generator, torch.optim.Optimizer, random.Random)
_NOTHING = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device)


def own(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The attributes that are neither state nor groups, nor hooks that others have registered."""
    known = {"state", "param_groups", "defaults", "step"}  # "step" may be a scheduler's, bound to this optimizer
    return {n: v for n, v in vars(optimizer).items() if n not in known and not n.startswith("_optimizer_")}


def obstacles(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Why no copy of `optimizer` can be tried, or why a copy would tell nothing; a clause each."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, value in own(optimizer).items():
        taken = 0
        for number, (path, leaf) in enumerate(_leaves(value, name, {id(optimizer)})):
            if isinstance(leaf, torch.optim.Optimizer):
                yield f"it steps another optimizer, its {path!r}"
                break
            if id(leaf) in stepped:
                yield f"its attribute {path!r} is one of its parameters, so that no copy of it can be tried"
                break
            if number == MOST_VALUES:
                yield f"its attribute {name!r} leads to more than {MOST_VALUES} values, too many to be looked at"
                break
            taken += leaf.nbytes if isinstance(leaf, torch.Tensor) else 0
            if taken > MOST_BYTES:
                yield f"its attribute {name!r} holds more than {format_bytes(MOST_BYTES)} of tensors outside its state"
                break


def copied(optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer) -> dict[str, Any]:
    """Copies of `own(optimizer)` for `other`, which share nothing that a step could change.

    Raises UnsupportedError, a clause, for what cannot be copied.
    """
    memo: dict[int, Any] = {id(optimizer): other}
    copies = {}
    for name, value in own(optimizer).items():
        if isinstance(value, _NOTHING):
            copies[name] = value
            continue
        try:
            copies[name] = copy.deepcopy(value, memo)
        except Exception as error:
            what = f"its attribute {name!r}, a {type(value).__qualname__}"
            raise UnsupportedError(f"{what}, cannot be copied for a trial: {error}") from error
    return copies


def bits(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Path of every number and tensor in the attributes -> something that is equal if it has the same bits."""
    return {
        f"attribute {path!r}": bits_of(leaf)
        for name, value in own(optimizer).items()
        for path, leaf in _leaves(value, name, {id(optimizer)})
    }


def bits_within(value: Any, name: str) -> dict[str, Any]:
    """The same of any value, called `name`."""
    return {path: bits_of(leaf) for path, leaf in _leaves(value, name, set())}


def bits_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        flat = leaf.detach().contiguous().reshape(-1).view(torch.uint8)
        return leaf.dtype, tuple(leaf.shape), flat.cpu().numpy().tobytes()
    if isinstance(leaf, torch.Generator):
        return leaf.get_state().numpy().tobytes()
    if isinstance(leaf, random.Random):
        return leaf.getstate()
    if _is_array(leaf):
        return str(leaf.dtype), leaf.shape, leaf.tobytes()
    return repr(leaf)


class Numbers:
    """The numbers that are attributes of one optimizer: what has changed since this object was made.

    Others are left alone. They may differ between a rank and its replacement, as a handle does.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._begun = self._now()

    def save(self) -> dict[str, Any]:
        """{"changed": name -> value, "gone": names}."""
        now, begun = self._now(), self._begun
        changed = {n: v for n, v in now.items() if n not in begun or not _same(v, begun[n])}
        return {"changed": changed, "gone": sorted(begun.keys() - now.keys())}

    def load(self, saved: dict[str, Any]) -> None:
        attributes = vars(self._optimizer)
        wanted = {n: v for n, v in self._begun.items() if n not in saved["gone"]} | saved["changed"]
        now = self._now()
        for name in now.keys() - wanted.keys():
            del attributes[name]
        attributes.update({n: v for n, v in wanted.items() if n not in now or not _same(v, now[n])})

    def _now(self) -> dict[str, Any]:
        return {name: value for name, value in own(self._optimizer).items() if type(value) in _PLAIN}


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)  # NaN and both zeros


def _leaves(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """(path, number, tensor, generator or optimizer) within `value`, through containers and attributes."""
    if isinstance(value, _NOTHING) or id(value) in seen:
        return
    if isinstance(value, _LEAVES) or _is_array(value):
        yield path, value
        return
    seen.add(id(value))
    for name, part in _parts(value):
        yield from _leaves(part, path + name, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for number, (key, part) in enumerate(value.items()):
            name = key if isinstance(key, _PLAIN) else number
            yield f"[{name!r}]", part
            if not isinstance(key, _PLAIN):
                yield f".keys()[{number}]", key
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"[{number}]", part) for number, part in enumerate(sorted(value, key=repr)))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    if hasattr(value, "__dict__"):
        yield from ((f".{name}", part) for name, part in vars(value).items())


def _is_array(value: Any) -> bool:
    """Of NumPy, which need not be there."""
    return type(value).__module__ == "numpy" and hasattr(value, "tobytes") and hasattr(value, "dtype")
