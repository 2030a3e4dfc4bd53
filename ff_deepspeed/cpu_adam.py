"""DeepSpeedCPUAdam's hidden state: running products of the betas, kept in C++ and in no state_dict.

The C++ object multiplies beta1^t and beta2^t up step by step and falls back to pow() when a step number or the betas
jump. Both give slightly different numbers, so going back one step and repeating it is not bit-exact unless the object
gets the same history. `HiddenState` follows that history (where the last jump was and how many products since), and
`restore` makes a fresh object and repeats it on eight numbers.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


class HiddenState:
    """Stands between a DeepSpeedCPUAdam and its C++ module, and knows what the C++ object knows.

    Everything except adam_update is passed through unseen.
    """

    def __init__(self, optimizer: Any) -> None:
        self._module = optimizer.ds_opt_adam
        self._optimizer_id: int = optimizer.opt_id
        self._adamw: bool = optimizer.adam_w_mode
        self._defaults: dict[str, Any] = dict(optimizer.defaults)
        self._betas = self._made_with()
        self._jump = 0  # the step at which pow() was last used; 0: never
        self._step = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def _made_with(self) -> tuple[float, float]:
        beta1, beta2 = self._defaults["betas"]
        return _float32(beta1), _float32(beta2)

    def adam_update(self, optimizer_id: int, step: int, lr: float, beta1: float, beta2: float, *rest: Any) -> Any:
        result = self._module.adam_update(optimizer_id, step, lr, beta1, beta2, *rest)
        betas = (_float32(beta1), _float32(beta2))
        if betas != self._betas or step not in (self._step, self._step + 1):
            self._betas, self._jump = betas, step
        self._step = step
        return result

    def save(self) -> dict[str, Any]:
        """What `restore` needs: plain numbers."""
        return {"betas": list(self._betas), "jump": self._jump, "step": self._step}

    def restore(self, saved: dict[str, Any]) -> None:
        """Make the C++ object what it was at `save()`. Takes about a microsecond per step since the last jump."""
        beta1, beta2 = saved["betas"]
        defaults = self._defaults
        self._module.create_adam(
            self._optimizer_id, defaults["lr"], *defaults["betas"], defaults["eps"], defaults["weight_decay"],
            self._adamw, False,
        )  # fmt: skip
        numbers = [torch.zeros(8) for _ in range(4)]
        for step in range(max(saved["jump"], 1), saved["step"] + 1):
            self._module.adam_update(self._optimizer_id, step, 0.0, beta1, beta2, 1e-8, 0.0, True, *numbers)
        self._betas, self._jump, self._step = (beta1, beta2), saved["jump"], saved["step"]


def follow(optimizer: Any) -> None:
    """Put a `HiddenState` in place, if `optimizer` is a DeepSpeedCPUAdam and has none. Before its first step."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    if isinstance(optimizer, DeepSpeedCPUAdam) and not isinstance(optimizer.ds_opt_adam, HiddenState):
        optimizer.ds_opt_adam = HiddenState(optimizer)


def save(optimizer: Any) -> dict[str, Any] | None:
    hidden = getattr(optimizer, "ds_opt_adam", None)
    return hidden.save() if isinstance(hidden, HiddenState) else None


def restore(optimizer: Any, saved: dict[str, Any] | None) -> None:
    if saved is not None:
        optimizer.ds_opt_adam.restore(saved)
