"""The moments and step counts of an Adam-like optimizer: made before the first step, named, and put back.

Optimizers make their moments during their first step. Copies need every tensor to exist, with the same name and size,
from version 0 on; so they are made here in the way the optimizer itself would make them. They are zero and the step
count is 0, so the first real step computes what it would have computed.
"""

from __future__ import annotations

from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def trainable(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The tensors that `optimizer` (the inner one, not DeepSpeed's wrapper) updates, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def create(optimizer: torch.optim.Optimizer) -> None:
    """Make the state that the first step of `optimizer` would make. State that exists is left alone."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    for group in optimizer.param_groups:
        for p in group["params"]:
            if not p.requires_grad or optimizer.state[p]:
                continue
            if isinstance(optimizer, DeepSpeedCPUAdam):
                dtype = torch.float if optimizer.fp32_optimizer_states else p.dtype
                optimizer.state[p].update(
                    step=0,
                    exp_avg=torch.zeros_like(p.data, dtype=dtype, device="cpu"),
                    exp_avg_sq=torch.zeros_like(p.data, dtype=dtype, device="cpu"),
                )
            else:
                _create_as_adam_would(optimizer, group, p)


def _create_as_adam_would(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter) -> None:
    """torch's own lazy initialisation, which knows about amsgrad, fused and capturable; it wants to see a gradient."""
    before = p.grad
    p.grad = torch.zeros_like(p)
    try:
        optimizer._init_group({**group, "params": [p]}, [], [], [], [], [], [])  # type: ignore[attr-defined]
    finally:
        p.grad = before


def tensors(optimizer: torch.optim.Optimizer, p: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """The moments of one parameter by name; step counts are not among them (see `steps`)."""
    state = optimizer.state[p]
    return {name: state[name] for name in MOMENTS if name in state}


def steps(optimizer: torch.optim.Optimizer) -> torch.Tensor | list[int]:
    """Step counts in the order of `trainable`; where the optimizer keeps tensors, one [parameters], where they lie."""
    found = [optimizer.state[p]["step"] for p in trainable(optimizer)]
    return torch.stack(found) if found and torch.is_tensor(found[0]) else found


def set_steps(optimizer: torch.optim.Optimizer, values: torch.Tensor | list[int]) -> None:
    """Put `steps()` back: in place where the optimizer keeps a tensor, else as the int that it keeps."""
    counts = values.tolist() if isinstance(values, torch.Tensor) else values
    for p, value in zip(trainable(optimizer), counts, strict=True):
        state = optimizer.state[p]
        if torch.is_tensor(state["step"]):
            state["step"].fill_(value)
        else:
            state["step"] = int(value)
