"""Attributes of TorchScript modules: they lie in C++, where Python's dictionaries do not show them.

A place of variables, as `ff_core.state.space` has them. Parameters and buffers are looked at elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ff_core.state.space import Functions, Space, reference


def is_scripted(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) and hasattr(module, "_concrete_type")


class OfScripted(Space):
    """Of one module, without those of its parts."""

    def __init__(self, label: str, module: torch.nn.Module) -> None:
        self._module = reference(module)
        others = {"training", *(name for name, _ in module.named_parameters(recurse=False))}
        others.update(name for name, _ in module.named_buffers(recurse=False))
        found: Any = module._concrete_type.get_attributes()  # type: ignore[operator, union-attr]
        self._names = [name for name in found if name not in others and not name.startswith("_is_")]
        super().__init__(label, dict(self.values({})))
        del self._held

    def values(self, functions: Functions) -> Mapping[str, Any]:
        module = self._module()
        return {} if module is None else {name: getattr(module, name) for name in self._names}

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        module = self._module()
        for name, value in new.items():
            setattr(module, name, value)

    def remove(self, functions: Functions, name: str) -> None:
        pass  # there are always the same
