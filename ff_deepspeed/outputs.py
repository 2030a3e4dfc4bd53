"""Where in an output of forward a tensor is, so that it is found again in the output of a repeated forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Path = tuple[Any, ...]


def leaves(output: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """The tensors in an output of forward: tensors, sequences, mappings and objects with attributes, nested."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif isinstance(output, (list, tuple)):
        for index, item in enumerate(output):
            yield from leaves(item, (*path, ("item", index)))
    elif isinstance(output, dict):
        for key, item in output.items():
            yield from leaves(item, (*path, ("item", key)))
    elif hasattr(output, "__dict__"):
        for name, item in vars(output).items():
            if isinstance(item, torch.Tensor):
                yield (*path, ("attribute", name)), item


def follow(output: Any, path: Path) -> Any:
    """The tensor at `path` of an output, as found by `leaves`."""
    for kind, name in path:
        output = output[name] if kind == "item" else getattr(output, name)
    return output
