"""The random generators that a data loader has for itself: given to it, its samplers, its data set or what that uses.

torch.Generator, numpy.random.Generator and RandomState, random.Random. Their states are part of where an epoch begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from ff_core.errors import UnsupportedError

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_DEPTH = 6
_MOST = 2000  # objects looked at: a data set may be a list of millions
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.Tensor, torch.nn.Module, type)


def find(loader: Any) -> list[Any]:
    """The generators reachable from `loader` through attributes, lists and dicts, each once, in a fixed order."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    level = [loader]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for part in level:
            if id(part) in seen or len(seen) > _MOST:
                continue
            seen.add(id(part))
            if _is_generator(part):
                found.setdefault(id(part), part)
            else:
                below += _parts(part)
        level = below
    return list(found.values())


def get_state(generator: Any) -> Any:
    """The state of a generator that `find` found, encodable."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return _copied(generator.bit_generator.state)


def set_state(generator: Any, state: Any) -> None:
    """Put `get_state()` back into the generator, or another one of its kind. Raises UnsupportedError if it is of
    another kind."""
    try:
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, random.Random):
            generator.setstate(state)
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            generator.bit_generator.state = state
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"a data loader has a {type(generator).__qualname__} where the dead rank's had another generator: {error}"
        ) from error


def _is_generator(part: Any) -> bool:
    if isinstance(part, torch.Generator):
        return part.device.type == "cpu"
    if isinstance(part, random.Random):
        return not isinstance(part, random.SystemRandom)
    return np is not None and isinstance(part, (np.random.Generator, np.random.RandomState))


def _parts(part: Any) -> Iterator[Any] | list[Any]:
    if isinstance(part, _PLAIN):
        return []
    if isinstance(part, dict):
        return list(part.values())[:_MOST]
    if isinstance(part, (list, tuple)):
        return list(part[:_MOST])
    # Not the iterator of a loader with processes: its parts change all the time.
    return [value for name, value in getattr(part, "__dict__", {}).items() if name not in ("_iterator", "_ff_past")]


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state.copy() if np is not None and isinstance(state, np.ndarray) else state
