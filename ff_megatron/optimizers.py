"""What Megatron's optimizers are made of: the inner Adam of each, its parameters, moments and step counts.

| inner optimizer                  | moments (tensors)         | step count                                  |
| ---                              | ---                       | ---                                         |
| torch.optim.Adam, AdamW          | exp_avg, exp_avg_sq       | state[p]["step"], a float tensor per parameter |
| apex / TransformerEngine FusedAdam | exp_avg, exp_avg_sq     | group["step"], an int; absent before the first step |

Optimizers make their moments during the first step. Copies need every tensor to exist from version 0 on, so `prepare`
makes them as the optimizer itself would: zero, with a step count of 0. torch's step counts, one tensor per parameter,
become views of one tensor, so that nothing here is done once per parameter and iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ff_core.errors import UnsupportedError

MOMENTS = ("exp_avg", "exp_avg_sq")
_TORCH = (torch.optim.Adam, torch.optim.AdamW)
_FUSED = ("apex.optimizers.fused_adam", "transformer_engine.pytorch.optimizers.fused_adam")


def parts(optimizer: Any) -> list[Any]:
    """The Megatron optimizers that `optimizer` consists of (a ChainedOptimizer's members, or itself)."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def parameters(part: Any) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(group, index in the group, tensor that the inner optimizer updates), in its order."""
    for group, values in enumerate(part.optimizer.param_groups):
        for index, p in enumerate(values["params"]):
            yield group, index, p


def is_torch(inner: Any) -> bool:
    """Whether `inner` keeps a step count per parameter, as torch's own Adam does."""
    return type(inner) in _TORCH


def is_fused(inner: Any) -> bool:
    """Whether `inner` is a FusedAdam (of apex or TransformerEngine), which keeps the step count in its groups."""
    return type(inner).__name__ == "FusedAdam" and type(inner).__module__ in _FUSED


def prepare(part: Any) -> torch.Tensor | None:
    """Make the state that the first step of `part` would make; what exists keeps its values.

    Returns torch's step counts, shape [parameters], float32, of which each state's "step" is now a view; None where the
    groups hold them. Raises UnsupportedError for state that is not in the module's table.
    """
    inner = part.optimizer
    if is_torch(inner):
        _complete(inner)
        return _gather_steps(inner)
    for _, _, p in parameters(part):
        state = inner.state[p]
        for name in MOMENTS:
            if name not in state:
                state[name] = torch.zeros_like(p.data)
        _check(state, p)
    return None


def _complete(inner: torch.optim.Optimizer) -> None:
    """torch's own lazy initialisation, which knows about amsgrad, fused and capturable; it wants to see a gradient."""
    for group in inner.param_groups:
        for p in group["params"]:
            if inner.state[p]:
                continue
            before, p.grad = p.grad, torch.zeros_like(p)
            try:
                inner._init_group({**group, "params": [p]}, [], [], [], [], [], [])  # type: ignore[attr-defined]
            finally:
                p.grad = before


def _gather_steps(inner: torch.optim.Optimizer) -> torch.Tensor:
    states = []
    for group in inner.param_groups:
        for p in group["params"]:
            state = inner.state[p]
            _check(state, p)
            states.append(state)
    if not states:
        return torch.zeros(0)
    steps = torch.stack([state["step"].detach().reshape(()) for state in states]).clone()
    for state, step in zip(states, steps.unbind(), strict=True):
        state["step"] = step
    return steps


def _check(state: dict[str, Any], p: torch.Tensor) -> None:
    for name, value in state.items():
        if name == "step":
            continue
        if name not in MOMENTS or not torch.is_tensor(value) or value.shape != p.shape:
            shape = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
            raise UnsupportedError(
                f"the optimizer keeps {name!r} ({shape}) for a parameter of shape {tuple(p.shape)}; what can be "
                f"protected: {', '.join(MOMENTS)} of the parameter's shape, and step"
            )
