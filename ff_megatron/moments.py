"""Optimizers of Megatron's that are no Adam: what `ff_core.state.optimizer_moments` has to know of them.

| class | state | made by |
| --- | --- | --- |
| torch's SGD, and FusedSGD of apex or TransformerEngine | momentum_buffer, made in the first step | itself |
| TensorParallelMuon and its kin | momentum_buffer | zeros; no trial, which would communicate |
| any other | as a trial shows | its _init_group(), or zeros |

The rule is DeepSpeed's: what `optimizer.state` holds is copied, and has to be all that `state_dict()` shows.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch

from ff_core.state import optimizer_moments, optimizer_trial
from ff_core.state import optimizer_tensors as held
from ff_core.state.optimizer_moments import Moments
from ff_core.state.optimizer_trial import Findings

WAY_OUT = "Use --optimizer adam"


class _Rules:
    way_out = WAY_OUT

    def examine(self, optimizer: torch.optim.Optimizer) -> Findings:
        if _orthogonalizes(optimizer):
            return Findings(tuple(held.obstacles(optimizer)))
        return optimizer_trial.examine(optimizer, self, self.steps)

    def steps(self, p: torch.Tensor) -> bool:
        return True  # masters require no gradients, and are given some

    def make(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter) -> None:
        if _orthogonalizes(optimizer) and not hasattr(optimizer, "_init_group"):
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        else:
            optimizer_trial.make(optimizer, group, p)

    def save(self, optimizer: Any) -> None:
        """Nothing is hidden."""

    def restore(self, optimizer: Any, saved: Any) -> None:
        pass


def _orthogonalizes(optimizer: torch.optim.Optimizer) -> bool:
    return any(kind.__name__ == "OrthogonalizedOptimizer" for kind in type(optimizer).__mro__)


_RULES = _Rules()


def words(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Why `optimizer` cannot be protected, as sentences that name the class and a way out."""
    return optimizer_moments.words(optimizer, _RULES.examine(optimizer), WAY_OUT)


_known: weakref.WeakKeyDictionary[torch.optim.Optimizer, Moments] = weakref.WeakKeyDictionary()


def of(optimizer: torch.optim.Optimizer) -> Moments:
    """The state of `optimizer` (the inner one, not Megatron's wrapper), always the same object."""
    if optimizer not in _known:
        _known[optimizer] = Moments(optimizer, _RULES)
    return _known[optimizer]
