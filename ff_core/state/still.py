"""Variables that nobody has touched: most of a script's are constants and functions, one look tells for all of them.

still = Still(["LAYERS", "train", "losses"], {"LAYERS": 12, "train": train}, {"losses": []})
still.to_look_at(vars(module))    # names of those that have another value by now
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping, Sequence
from operator import attrgetter, is_
from typing import Any

import torch

from ff_core.state.began import Began
from ff_core.state.space import Space
from ff_core.state.values import np

_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_MOST_BYTES = 4096  # of one of them: they are read with every version
_version, _given = attrgetter("_version"), attrgetter("__dict__")


class Still:
    """Of one place. names: all of them.  fixed: of those that never change in place, what they had at first.

    resting: of others that `can_rest()`, what they have now, which is what they had at first.
    """

    def __init__(self, names: Sequence[str], fixed: Mapping[str, Any], resting: Mapping[str, Any]) -> None:
        self._moving = [name for name in names if name not in fixed and name not in resting]
        self._fixed, self._values = list(fixed), list(fixed.values())
        self._tensors = [name for name, value in resting.items() if type(value) in _TENSORS]
        self._written = _written([resting[name] for name in self._tensors])
        self._plain = [name for name, value in resting.items() if type(value) not in _TENSORS]
        self._contents = _contents([resting[name] for name in self._plain])

    def to_look_at(self, held: Mapping[str, Any], *, closely: bool) -> list[str]:
        """Names of `held` whose values may be others than at first. closely: those of all tensors, too.

        Loops within the interpreter, where nothing has changed.
        """
        names = [name for name in self._moving if name in held]
        if not all(map(is_, map(held.get, self._fixed), self._values)):
            pairs = zip(self._fixed, self._values, strict=True)
            names += [name for name, value in pairs if name in held and held[name] is not value]
        if self._tensors and (closely or _written(list(map(held.get, self._tensors))) != self._written):
            names += [name for name in self._tensors if name in held]
        if self._contents is None or _contents(list(map(held.get, self._plain))) != self._contents:
            names += [name for name in self._plain if name in held]
        return names


def can_rest(value: Any) -> bool:
    """Whether one look at many of its kind tells whether it has changed, but for what is written through .data."""
    kind = type(value)
    if kind in _TENSORS:
        return not (value.is_inference() or value.__dict__)
    if np is not None and kind is np.ndarray:
        return value.dtype.kind != "O" and value.nbytes <= _MOST_BYTES and _contents(value) is not None
    data = _contents(value) if kind in _CONTAINERS and len(value) <= _MOST_BYTES else None
    return data is not None and len(data) <= _MOST_BYTES


def resting(space: Space, held: Mapping[str, Any], began: Began, changed: set[str]) -> dict[str, Any]:
    """Name -> value, of those that can rest and are what they were at first. changed: paths of others."""
    found: dict[str, Any] = {}
    for name in space.known:
        path, value = space.label + name, held.get(name)
        if path in changed or path in began.fixed or path not in began.marks or not can_rest(value):
            continue
        if began.mark(path, value, look=True) == began.marks[path]:
            found[name] = value
    return found


def _contents(value: Any) -> bytes | None:
    try:
        return marshal.dumps(value, 2)
    except ValueError:
        return None


def _written(tensors: list[Any]) -> Any:
    """Which they are, and torch's counts of writes; None: they are something else by now."""
    try:
        return None if any(map(_given, tensors)) else [*map(id, tensors), *map(_version, tensors)]
    except (AttributeError, RuntimeError):
        return None
