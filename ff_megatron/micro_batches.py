"""Hooks of megatron-core's schedules, which every loop on it calls: points of injected faults, and a micro-batch's
loss."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ff_core.worker.guard import Guard
from ff_core.worker.hooks import wrap

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession

Original = Callable[..., Any]


class Protected(Protocol):
    """A protected training."""

    @property
    def session(self) -> AdapterSession: ...

    def feeds(self, iterator: Any) -> None:
        """A micro-batch will come from `iterator` (None: of another stage). Raises UnsupportedError if it cannot go
        back."""


def install(guard: Guard[Any]) -> None:
    """Put the hooks in, for the training that `guard` has."""
    schedules = importlib.import_module("megatron.core.pipeline_parallel.schedules")
    wrap(schedules, "forward_step", guard.guarded(_forward_step))
    wrap(schedules, "backward_step", guard.guarded(_backward_step))


def _forward_step(found: Protected, original: Original, *args: Any, **kwargs: Any) -> Any:
    if found.session.training:
        found.feeds(inspect.signature(original).bind(*args, **kwargs).arguments["data_iterator"])
        found.session.inject("forward")
    result = original(*args, **kwargs)
    output = _first(result[0])
    if isinstance(output, torch.Tensor) and output.numel() == 1:
        # With pipeline stages Megatron gives the memory of outputs back before their backward, of the loss as well.
        output._ff_loss = output.detach().clone()  # type: ignore[attr-defined]
    return result


def _backward_step(found: Protected, original: Original, *args: Any, **kwargs: Any) -> Any:
    if found.session.training:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        output, gradient = _first(given["output_tensor"]), _first(given["output_tensor_grad"])
        if gradient is None and output is not None:  # the last stage: its output is the loss
            found.session.loss(getattr(output, "_ff_loss", output))
        found.session.inject("backward")
    return original(*args, **kwargs)


def _first(value: Any) -> Any:
    """Megatron gives one tensor, or a list of one."""
    return value[0] if isinstance(value, list) else value
