"""Adam on the CPU has hidden state: running products of the betas, kept in C++ and in no state_dict.

The C++ object multiplies beta1^t and beta2^t up step by step and falls back to pow() when a step number or the betas
jump. Both give slightly different numbers, so going back one step and repeating it is not bit-exact unless the object
gets the same history. `History` is that: where the last jump was and how many products since. To restore means to
repeat it on eight numbers.

| class | its C++ object |
| --- | --- |
| DeepSpeedCPUAdam | one for each optimizer: made anew, then given its history (`OwnObject`) |
| FusedAdam on the CPU | one of the process for each mode (AdamW, L2): betas of zero make it forget (`SharedObject`) |

On a GPU FusedAdam computes pow() in every step and remembers nothing.

An object is called once for each tensor of a step. In DeepSpeed 0.19 the first call counts. In 0.18 a second one looks
like a jump (`forgets_in_a_step`).
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


@functools.cache
def forgets_in_a_step() -> bool:
    """Whether another call with the same step computes pow(). The C++ source says so that the operators are made of."""
    import deepspeed

    source = Path(deepspeed.__file__).parent / "ops" / "csrc" / "includes" / "cpu_adam.h"
    return "step == _step + 1" not in source.read_text()


@dataclass
class History:
    """What a C++ object knows. betas: as float32. jump: the step at which pow() was last used, 0: never."""

    betas: tuple[float, float]
    jump: int = 0
    step: int = 0

    def stepped(self, step: int, beta1: float, beta2: float) -> None:
        betas = (_float32(beta1), _float32(beta2))
        is_next = step == self.step + 1 or (step == self.step and not forgets_in_a_step())
        if betas != self.betas or not is_next:
            self.betas, self.jump = betas, step
        self.step = step

    def save(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**asdict(self), "betas": list(self.betas)}

    def load(self, saved: dict[str, Any]) -> None:
        self.betas, self.jump, self.step = tuple(saved["betas"]), saved["jump"], saved["step"]

    def steps(self) -> range:
        """To be repeated, about a microsecond each."""
        return range(max(self.jump, 1), self.step + 1)


class OwnObject:
    """Stands between a DeepSpeedCPUAdam and its C++ module, and knows what its C++ object knows.

    Everything except adam_update is passed through unseen.
    """

    def __init__(self, optimizer: Any) -> None:
        self._module = optimizer.ds_opt_adam
        self._optimizer_id: int = optimizer.opt_id
        self._adamw: bool = optimizer.adam_w_mode
        self._defaults: dict[str, Any] = dict(optimizer.defaults)
        beta1, beta2 = self._defaults["betas"]
        self.history = History((_float32(beta1), _float32(beta2)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def adam_update(self, optimizer_id: int, step: int, lr: float, beta1: float, beta2: float, *rest: Any) -> Any:
        result = self._module.adam_update(optimizer_id, step, lr, beta1, beta2, *rest)
        self.history.stepped(step, beta1, beta2)
        return result

    def restore(self, saved: dict[str, Any]) -> None:
        """Make the C++ object what it was when `saved` was the history."""
        self.history.load(saved)
        defaults = self._defaults
        self._module.create_adam(
            self._optimizer_id, defaults["lr"], *defaults["betas"], defaults["eps"], defaults["weight_decay"],
            self._adamw, False,
        )  # fmt: skip
        numbers = [torch.zeros(8) for _ in range(4)]
        for step in self.history.steps():
            self._module.adam_update(self._optimizer_id, step, 0.0, *self.history.betas, 1e-8, 0.0, True, *numbers)


class SharedObject:
    """Stands in for FusedAdam's function on the CPU, and knows what the C++ object of its mode knows."""

    _made: dict[int, SharedObject] = {}  # of the process, as the C++ objects are
    _histories: dict[int, History] = {}  # by mode; no attribute, as optimizers on trial would be told apart by it

    def __init__(self, function: Any, mode: int) -> None:
        self._function, self._mode = function, mode

    @property
    def history(self) -> History:
        return self._histories.setdefault(self._mode, History((0.0, 0.0)))

    @classmethod
    def of(cls, function: Any, mode: int) -> SharedObject:
        """Always the same for a mode. mode: 1 AdamW, 0 L2."""
        return cls._made.setdefault(mode, cls(function, mode))

    def __deepcopy__(self, memo: Any) -> SharedObject:
        return self  # copies of an optimizer step the same C++ object

    def __call__(self, chunk: int, skip: Any, tensors: Any, lr: float, *given: Any) -> Any:
        """given: beta1, beta2, eps, step, and more that leaves no trace."""
        result = self._function(chunk, skip, tensors, lr, *given)
        beta1, beta2, _, step = given[:4]
        for _ in tensors[0]:
            self.history.stepped(step, beta1, beta2)
        return result

    def restore(self, saved: dict[str, Any]) -> None:
        """Make the C++ object what it was when `saved` was the history."""
        self.history.load(saved)
        self._repeat(0, (0.0, 0.0))
        for step in self.history.steps():
            self._repeat(step, self.history.betas)

    def _repeat(self, step: int, betas: tuple[float, float]) -> None:
        numbers = [[torch.zeros(8)] for _ in range(4)]
        noop = torch.zeros(1, dtype=torch.int32)
        self._function(8, noop, numbers, 0.0, *betas, 1e-8, step, self._mode, 0, 0.0)


def follow(optimizer: Any) -> None:
    """Know from now on what is hidden in C++ of `optimizer`, if it is one of the two. Before its first step."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    if _hidden(optimizer) is not None:
        return
    if isinstance(optimizer, DeepSpeedCPUAdam):
        optimizer.ds_opt_adam = OwnObject(optimizer)
    elif isinstance(optimizer, FusedAdam) and get_accelerator().device_name() == "cpu":
        optimizer.multi_tensor_adam = SharedObject.of(optimizer.multi_tensor_adam, optimizer.adam_w_mode)


def save(optimizer: Any) -> dict[str, Any] | None:
    """For `restore`: plain numbers; None if nothing is hidden."""
    hidden = _hidden(optimizer)
    return None if hidden is None else hidden.history.save()


def restore(optimizer: Any, saved: dict[str, Any] | None) -> None:
    hidden = _hidden(optimizer)
    if saved is not None and hidden is not None:
        hidden.restore(saved)


def _hidden(optimizer: Any) -> OwnObject | SharedObject | None:
    for name in ("ds_opt_adam", "multi_tensor_adam"):
        hidden = vars(optimizer).get(name)
        if isinstance(hidden, (OwnObject, SharedObject)):
            return hidden
    return None
