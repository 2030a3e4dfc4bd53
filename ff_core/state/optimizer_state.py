"""An optimizer's whole state: what its state_dict() holds, what it has besides, and the parameters that it steps."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ff_core.errors import FailoverError
from ff_core.state.optimizer_attributes import Numbers


class Hidden(Protocol):
    """State of some classes that only a framework's adapter can read, such as what is in C++. None for all others."""

    def save(self, optimizer: Any, /) -> Any: ...

    def restore(self, optimizer: Any, saved: Any, /) -> None: ...


_hidden: Hidden | None = None


def know(hidden: Hidden) -> None:
    """From now on `hidden` is saved and put back with each OptimizerState."""
    global _hidden
    _hidden = hidden


class OptimizerState:
    """`optimizer` with its parameters, as one object that can be saved and loaded."""

    def __init__(self, optimizer: torch.optim.Optimizer, name: str) -> None:
        self.optimizer = optimizer
        self._name = name
        self._numbers = Numbers(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """{"optimizer": its state_dict(), "attributes": numbers there that have changed, "hidden": see `Hidden`,
        "parameters": values in the order of its groups, "requires_grad": a byte for each}. Aliases live tensors."""
        return {
            "attributes": self._numbers.save(),
            "hidden": None if _hidden is None else _hidden.save(self.optimizer),
            "optimizer": self.optimizer.state_dict(),
            "parameters": [p.detach() for p in self._parameters()],
            "requires_grad": bytes(p.requires_grad for p in self._parameters()),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Put a state back; parameters in place, gradients forgotten. Raises FailoverError if shapes differ."""
        parameters = list(self._parameters())
        shapes = [tuple(p.shape) for p in parameters]
        given = [tuple(value.shape) for value in saved["parameters"]]
        if shapes != given:
            raise FailoverError(
                f"{self._name}: its parameters have the shapes {shapes[:4]} here, {given[:4]} in the restored version: "
                "the script built something else than before"
            )
        with torch.no_grad():
            for p, value, trains in zip(parameters, saved["parameters"], saved["requires_grad"], strict=True):
                p.copy_(value)
                p.grad = None
                p.requires_grad_(bool(trains))  # a script may have been interrupted while it was off
        self.optimizer.load_state_dict(saved["optimizer"])
        self._numbers.load(saved["attributes"])
        if _hidden is not None:
            _hidden.restore(self.optimizer, saved["hidden"])

    def _parameters(self) -> Any:
        return (p for group in self.optimizer.param_groups for p in group["params"])
