"""The state of the optimizer below DeepSpeed's wrappers: what `ff_core.state.optimizer_moments` has to know of it.

| class | made by | what else |
| --- | --- | --- |
| optimizers of torch | their _init_group() | |
| FusedAdam | zeros, as a trial shows | on the CPU state in C++: `ff_deepspeed.cpu_adam` |
| DeepSpeedCPUAdam | `_CPP` | state in C++: `ff_deepspeed.cpu_adam` |
| DeepSpeedCPULion, DeepSpeedCPUAdagrad | `_CPP` | what is in C++ is set anew by every step |
| any other | zeros, as a trial shows | |
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
from ff_deepspeed import cpu_adam

#: DeepSpeed's optimizers whose numbers are in C++, by class name: their tensors. A copy of one would share them.
_CPP = {
    "DeepSpeedCPUAdam": ("exp_avg", "exp_avg_sq"),
    "DeepSpeedCPULion": ("exp_avg", "exp_avg_sq"),
    "DeepSpeedCPUAdagrad": ("exp_avg_sq",),
}

WAY_OUT = (
    'Give deepspeed.initialize() a torch.optim.AdamW, or write "type": "AdamW" with "torch_adam": true among the '
    '"params" of "optimizer" in the configuration'
)


class _Rules:
    way_out = WAY_OUT
    save, restore = staticmethod(cpu_adam.save), staticmethod(cpu_adam.restore)

    def examine(self, optimizer: torch.optim.Optimizer) -> Findings:
        cpu_adam.follow(optimizer)
        if _names_in_cpp(optimizer):
            return Findings(tuple(held.obstacles(optimizer)))
        return optimizer_trial.examine(optimizer, cpu_adam)

    def steps(self, p: torch.Tensor) -> bool:
        return p.requires_grad

    def make(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter) -> None:
        names = _names_in_cpp(optimizer)
        if not names:
            optimizer_trial.make(optimizer, group, p)
            return
        dtype = torch.float if optimizer.fp32_optimizer_states else p.dtype  # type: ignore[attr-defined]
        optimizer.state[p]["step"] = 0
        for name in names:
            optimizer.state[p][name] = torch.zeros_like(p.data, dtype=dtype, device="cpu")


_RULES = _Rules()


def examine(optimizer: torch.optim.Optimizer) -> Findings:
    """Whether all that `optimizer` remembers is found, before training."""
    return _RULES.examine(optimizer)


def words(optimizer: torch.optim.Optimizer, findings: Findings) -> Iterator[str]:
    """The obstacles among `findings` as sentences that name the class and a way out."""
    return optimizer_moments.words(optimizer, findings, WAY_OUT)


_known: weakref.WeakKeyDictionary[torch.optim.Optimizer, Moments] = weakref.WeakKeyDictionary()


def of(optimizer: torch.optim.Optimizer) -> Moments:
    """The state of `optimizer` (the inner one, not DeepSpeed's wrapper), always the same object."""
    if optimizer not in _known:
        _known[optimizer] = Moments(optimizer, _RULES)
    return _known[optimizer]


def _names_in_cpp(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    kind = type(optimizer)
    return _CPP.get(kind.__qualname__, ()) if kind.__module__.startswith("deepspeed.ops.") else ()
