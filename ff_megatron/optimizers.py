"""What Megatron's optimizers are made of: the inner Adam of each, its parameters, moments and step counts.

| inner optimizer      | per parameter, of its shape                      | step count                          |
| ---                  | ---                                              | ---                                 |
| torch's Adam, AdamW  | exp_avg, exp_avg_sq                              | state[p]["step"]: float tensors     |
| FusedAdam            | exp_avg, exp_avg_sq                              | group["step"]: int, absent at first |
| precision-aware one  | these in fp32, fp16 or bf16, and master_param:   | group["step"]                       |
|                      | fp32, fp16, or the 16 bits that bf16 weights lack |                                    |

FusedAdam is apex' or TransformerEngine's; only the latter can be precision-aware. Others: ff_megatron.moments.
A precision-aware optimizer updates the weights themselves. Its fp16 values have a scale each, in `_scales`: values and
scales are copied as they lie there, because a scale that is computed again from unscaled values need not be the same.

Optimizers make their moments during the first step. Copies need every tensor to exist from version 0 on, so `prepare`
makes them as the optimizer itself would: zero, with a step count of 0. Step counts and scales, one tensor per
parameter, become views of one tensor, so that nothing here is done once per parameter and iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ff_core.errors import UnsupportedError
from ff_megatron import moments

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master_param"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int16)
_TORCH = (torch.optim.Adam, torch.optim.AdamW)
_FUSED = ("apex.optimizers.fused_adam", "transformer_engine.pytorch.optimizers.fused_adam")


def parts(optimizer: Any) -> list[Any]:
    """The Megatron optimizers of which `optimizer` consists: a ChainedOptimizer's members (dense, experts), or itself.

    A stub is left out: it stands for parameters of which this rank has none, and holds nothing.
    """
    members = getattr(optimizer, "chained_optimizers", [optimizer])
    return [member for member in members if not getattr(member, "is_stub_optimizer", False)]


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


def is_adam(inner: Any) -> bool:
    """Whether `inner` is one of the module's table."""
    return is_torch(inner) or is_fused(inner)


def is_precision_aware(inner: Any) -> bool:
    """Whether `inner` is TransformerEngine's FusedAdam keeping masters, or moments of fewer bits than fp32."""
    dtypes = getattr(inner, "name_to_dtype_map", None)
    return is_fused(inner) and dtypes is not None and (
        inner.master_weights or any(dtypes[name] is not torch.float32 for name in MOMENTS)
    )


def prepare(part: Any) -> dict[str, torch.Tensor]:
    """Make the state that the first step of `part` would make; what exists keeps its values.

    Returns what each parameter has one number of, by name, float32: {"step": shape [parameters]} for torch's Adam,
    {"scale": shape [scales]} for a precision-aware one. The optimizer's own tensors are now views of these.
    Raises UnsupportedError for state that is not in the module's table.
    """
    inner = part.optimizer
    if not is_adam(inner):
        moments.of(inner).create()
        return {}
    if is_torch(inner):
        _complete(inner)
    for _, _, p in parameters(part):
        state = inner.state[p]
        if not state and is_precision_aware(inner):
            inner.initialize_state(p, inner.store_param_remainders and p.dtype == torch.bfloat16)
        for name in MOMENTS:
            if name not in state:
                state[name] = torch.zeros_like(p.data)
        _check(state, p)
    if is_torch(inner):
        return {"step": _gather([(inner.state[p], "step") for _, _, p in parameters(part)])}
    if is_precision_aware(inner):
        owners = [inner._scales.get(p, {}) for _, _, p in parameters(part)]
        return {"scale": _gather([(scales, name) for scales in owners for name in sorted(scales)])}
    return {}


def tensors(inner: Any, p: Any) -> dict[str, torch.Tensor]:
    """What `inner`, once prepared, remembers of `p`, by name, always in the same order."""
    if not is_adam(inner):
        return moments.of(inner).tensors(p)
    state = inner.state[p]
    return {name: state[name] for name in ((*MOMENTS, MASTER) if MASTER in state else MOMENTS)}


def save(part: Any) -> dict[str, Any] | None:
    """Numbers that are in no tensor and no group; None for Adam, which has none."""
    return None if is_adam(part.optimizer) else moments.of(part.optimizer).save()


def load(part: Any, saved: dict[str, Any] | None) -> None:
    """Put `save()` back; the tensors themselves are restored in place by others."""
    if saved is not None:
        moments.of(part.optimizer).load(saved)


def _complete(inner: torch.optim.Optimizer) -> None:
    """torch's own lazy initialisation, which knows about amsgrad, fused and capturable; it wants to see gradients."""
    for group in inner.param_groups:
        bare = [p for p in group["params"] if not inner.state[p]]
        before = [p.grad for p in bare]
        try:
            for p in bare:
                p.grad = torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape)  # no memory of its shape
            inner._init_group({**group, "params": bare}, [], [], [], [], [], [])  # type: ignore[attr-defined]
        finally:
            for p, grad in zip(bare, before, strict=True):
                p.grad = grad


def _gather(places: list[tuple[dict[str, Any], str]]) -> torch.Tensor:
    """Make the numbers that lie in `places` (dictionary, name) views of one tensor, which is returned."""
    if not places:
        return torch.zeros(0)
    found = [owner[name].detach() for owner, name in places]
    numbers = torch.stack([number.reshape(()) for number in found]).clone()
    for (owner, name), old, new in zip(places, found, numbers.unbind(), strict=True):
        owner[name] = new.reshape(old.shape)
    return numbers


def _check(state: dict[str, Any], p: torch.Tensor) -> None:
    for name, value in state.items():
        if name == "step":
            continue
        plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.shape == p.shape and value.dtype in _DTYPES
        if name not in (*MOMENTS, MASTER) or not plain:
            kind = f"{tuple(value.shape)}, {value.dtype}, " if torch.is_tensor(value) else ""
            raise UnsupportedError(
                f"the optimizer keeps {name!r} ({kind}{type(value).__name__}) for a parameter of shape "
                f"{tuple(p.shape)}; what can be protected: plain tensors {', '.join(MOMENTS)} and {MASTER} of the "
                "parameter's shape in fp32, fp16 or bf16, and step"
            )
