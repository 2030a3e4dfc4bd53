"""Gradients that a script writes between backward and step: clipped by hand, scaled, with noise.

Nothing records how it did that. So where it is found what it has made of the gradients is kept until the iteration
is safe. An iteration whose calls are made again after a failure gets it behind its backward passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import frames
from ff_core.state.edits import Edits
from ff_deepspeed import words
from ff_deepspeed.ambient import Ambient
from ff_deepspeed.recording import Event, Record
from ff_deepspeed.state_map import partitions

if TYPE_CHECKING:
    from ff_deepspeed.engine import ProtectedEngine


class Gradients:
    """Of one engine whose script makes its calls by itself."""

    def __init__(self, protection: ProtectedEngine) -> None:
        engine = self._engine = protection.engine
        self._fail = protection.fail
        self._made = False  # a backward pass since the last step
        self._edits = Edits(lambda: _named(engine))
        self._looks = 0
        self._written = False  # once: what is written through .data is not looked for in every iteration

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around engine.backward()."""
        self._made = True
        yield
        if not self._written:
            self._looks += 1
            self._edits.stepped(self._looks)

    def stepping(self, record: Record | None, ambient: Ambient) -> None:
        """engine.step() begins: what the script has made of the gradients goes into `record`. Raises UnsupportedError
        if it has called backward() past the engine."""
        if not self._made:
            raise self._fail(UnsupportedError(words.OWN_BACKWARD.format(line=frames.line())))
        self._made = False
        self._written = self._written or bool(self._edits.found())
        self._edits.stepping()
        if self._written and record is not None:
            record.events.append(Written(self._engine, ambient))


class Written(Event):
    """The gradients as the script has left them."""

    def __init__(self, engine: Any, ambient: Ambient) -> None:
        self.ambient = ambient
        self._gradients = [gradient.detach().clone() for _, gradient in _named(engine)]

    def replay(self, engine: Any) -> None:
        live = [gradient for _, gradient in _named(engine)]
        if [tensor.shape for tensor in live] != [kept.shape for kept in self._gradients]:
            raise FailoverError("after a failure other parameters have gradients than before it")
        with torch.no_grad():
            for tensor, kept in zip(live, self._gradients, strict=True):
                tensor.copy_(kept)


def _named(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in engine.module.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
    for group, gradients in (getattr(engine.optimizer, "averaged_gradients", None) or {}).items():
        for number, gradient in enumerate(gradients or ()):
            if isinstance(gradient, torch.Tensor):
                yield f"gradient {group}.{number}", gradient
    if getattr(engine.optimizer, "cpu_offload", False):
        for group, partition in enumerate(partitions(engine.optimizer) or ()):
            if partition.grad is not None:
                yield f"gradient {group}", partition.grad
    for name in ("fp32_groups_gradients", "fp32_groups_gradients_flat"):
        for group, held in enumerate(getattr(engine.optimizer, name, None) or ()):
            for number, gradient in enumerate([held] if isinstance(held, torch.Tensor) else held):
                yield f"{name} {group}.{number}", gradient
