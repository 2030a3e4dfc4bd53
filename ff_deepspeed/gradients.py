"""Gradients that a script writes between backward and step: clipped by hand, scaled, with noise.

Nothing records what it did. So after a failure such an iteration is not repeated by making its calls again: the script
repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ff_core.state.edits import Edits
from ff_deepspeed.recording import Record

WRITTEN = "the script writes gradients between engine.backward() and engine.step()"


class Gradients:
    """Of one engine whose script makes its calls by itself."""

    def __init__(self, engine: Any) -> None:
        self._edits = Edits(lambda: _named(engine))
        self._record: Record | None = None
        self._written = False  # in an iteration before: what is written through .data is not looked for in each

    def made(self, record: Record | None) -> None:
        """engine.backward() is over."""
        self._record = record
        if record is None:
            return
        if self._written:
            record.edited = WRITTEN
        else:
            self._edits.stepped(record.version)

    def stepping(self) -> None:
        """engine.step() begins."""
        if self._record is not None and not self._written and self._edits.found():
            self._written = True
            self._record.edited = WRITTEN
        self._edits.stepping()


def _named(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in engine.module.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
    averaged = getattr(engine.optimizer, "averaged_gradients", None) or {}
    for group, gradients in averaged.items():
        for number, gradient in enumerate(gradients or ()):
            if isinstance(gradient, torch.Tensor):
                yield f"gradient {group}.{number}", gradient
    for name in ("fp32_groups_gradients", "fp32_groups_gradients_flat"):
        for group, held in enumerate(getattr(engine.optimizer, name, None) or ()):
            for number, gradient in enumerate([held] if isinstance(held, torch.Tensor) else held):
                yield f"{name} {group}.{number}", gradient
