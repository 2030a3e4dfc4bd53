"""What a script can switch for its training thread, and decides how it computes: whether torch keeps graphs, autocast,
numbers that are too small, decimal's context, what NumPy does about errors; and how deep Python may recurse. A place of
variables, as `ff_core.state.space` has them.

Not looked at: filters of warnings, the locale, thresholds of the garbage collector, how texts are printed. Results do
not depend on them.
"""

from __future__ import annotations

import decimal
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ff_core.state.space import Functions, Space

try:
    import numpy as np
except ImportError:  # torch works without it
    np = None  # type: ignore[assignment]

_NAMES = (
    "grad_enabled", "autocast_cpu", "autocast_cuda", "autocast_dtypes", "flush_denormal", "decimal_precision",
    "decimal_rounding", "recursion_limit", "numpy_errors",
)  # fmt: skip
_ERRORS: Any = getattr(getattr(getattr(np, "_core", None), "umath", None), "_extobj_contextvar", None)
_DEVICES = ("cpu", "cuda")
_SMALL, _SMALLER = [1e-308], [1e-2]  # in lists: nobody multiplies them ahead


class OfThisThread(Space):
    """The training thread's switches."""

    def __init__(self) -> None:
        self._writers = _writers()
        self._read: tuple[Any, ...] = ()
        self._last: dict[str, Any] = {}
        super().__init__("thread.", dict(self.values({})))

    def values(self, functions: Functions) -> Mapping[str, Any]:
        context = decimal.getcontext()
        read = (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cpu"),
            torch.get_autocast_dtype("cuda"),
            _SMALL[0] * _SMALLER[0] == 0.0,
            context.prec,
            context.rounding,
            sys.getrecursionlimit(),
            _numpy_errors(),
        )
        if read != self._read:  # the very values of before are not looked at
            self._read = read
            errors = {} if np is None else np.geterr()
            texts = " ".join(map(str, read[3:5])), ",".join(map(str, errors.values()))
            self._last = dict(zip(_NAMES, (*read[:3], texts[0], *read[5:9], texts[1]), strict=True))
        return self._last

    def write(self, functions: Functions, new: dict[str, Any]) -> None:
        for name, value in new.items():
            self._writers[name](value)

    def remove(self, functions: Functions, name: str) -> None:
        pass  # there are always the same


def _numpy_errors() -> Any:
    """Equal as long as numpy.geterr() gives the same, which takes longer than all else: NumPy 2 has a place for it."""
    if _ERRORS is not None:
        return _ERRORS.get()
    return None if np is None else np.geterr()


def _writers() -> dict[str, Callable[[Any], Any]]:
    found: dict[str, Callable[[Any], Any]] = {
        "grad_enabled": torch._C._set_grad_enabled,
        "flush_denormal": torch.set_flush_denormal,
        "decimal_precision": lambda value: setattr(decimal.getcontext(), "prec", value),
        "decimal_rounding": lambda value: setattr(decimal.getcontext(), "rounding", value),
        "recursion_limit": sys.setrecursionlimit,
        "autocast_dtypes": _set_dtypes,
        "numpy_errors": lambda value: np.seterr(**dict(zip(np.geterr(), value.split(","), strict=True))),
    }
    for device in _DEVICES:
        found[f"autocast_{device}"] = functools.partial(torch.set_autocast_enabled, device)
    return found


def _set_dtypes(value: str) -> None:
    for device, name in zip(_DEVICES, value.split(), strict=True):
        torch.set_autocast_dtype(device, getattr(torch, name.removeprefix("torch.")))
