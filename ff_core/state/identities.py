"""Objects that a script knows by `id()` or by where their memory lies: a momentum under `id(parameter)`.

These numbers are others in another process. So they are saved as names, of what both processes have: models with their
parts, and the script's own objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ff_core.state import switched
from ff_core.state.room import LostError

Numbers = dict[int, str]
"""id or address -> name."""


def of(labelled: Mapping[str, Any]) -> Numbers:
    """labelled: objects that are looked at by themselves, by label."""
    found: Numbers = {}
    roots = {f"model {place}": root for place, root in enumerate(switched.roots())}
    for name, owner in {**labelled, **roots}.items():
        found[id(owner)] = name
        if isinstance(owner, torch.nn.Module):
            parts = [*owner.named_modules(), *owner.named_parameters(), *owner.named_buffers()]
            found.update((id(part), f"{name} {path}") for path, part in parts)
            tensors = [(path, part) for path, part in parts if isinstance(part, torch.Tensor)]
            found.update((_address(part), f"{name} {path} memory") for path, part in tensors)
    found.pop(0, None)
    return found


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # of a kind that has none
        return 0


def put_id_of(putter: Any, live: Any, taken: list[Any], in_place: bool) -> int:
    """A part of `ff_core.state.restored.Putter`."""
    if taken[1] not in putter.ids:
        raise LostError(f"the id of {taken[1]} is not known")
    number: int = putter.ids[taken[1]]
    return number
