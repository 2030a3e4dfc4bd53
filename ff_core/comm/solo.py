"""The inner group of a process that initialises alone: every collective completes at once, locally.

Each operation leaves in its outputs what this rank alone can know: its own contribution in every place. Results that
steer control flow come from the init journal, which overwrites these; large ones are restored with the state.
"""

from __future__ import annotations

from typing import Any

import torch

from . import compat
from .done import DoneWork


def flatten(value: Any) -> list[torch.Tensor]:
    """All tensors of a tensor or of nested lists of tensors, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flatten(item)]
    return []


def _fill(outputs: Any, source: torch.Tensor) -> None:
    for output in flatten(outputs):
        output.copy_(source.reshape(output.shape) if output.numel() == source.numel() else output)


class SoloGroup:
    """Stands where a connected `dist.ProcessGroup` would stand; `rank` of `size`, connected to nobody."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._backend = compat.fake_backend(rank, size)

    def run(self, op: str, outputs: Any, args: tuple[Any, ...]) -> DoneWork:
        """Performs `op` (a method name of `dist.ProcessGroup`) locally. `outputs`: its first argument."""
        with torch.no_grad():
            if op in ("allgather", "allgather_coalesced", "gather"):
                self._gather(op, outputs, args)
            elif "all_gather" in op or "allgather" in op:
                for output, source in zip(flatten(outputs), flatten(args[0]), strict=False):
                    output.view(self._size, -1).copy_(source.reshape(1, -1).expand(self._size, -1))
            elif "reduce_scatter" in op or op == "scatter":
                self._scatter(op, outputs, args)
            elif op == "alltoall":
                for output, source in zip(flatten(outputs), flatten(args[0]), strict=False):
                    _fill(output, source)
            elif op in ("alltoall_base", "all_to_all_single"):
                _fill(outputs, args[0])
        source_rank = self._rank if op == "recv_anysource" else None
        return DoneWork(flatten(outputs), source_rank)

    def _gather(self, op: str, outputs: Any, args: tuple[Any, ...]) -> None:
        inputs = flatten(args[0])
        if op == "allgather_coalesced":  # a list per rank, of one output per input
            for per_rank in outputs:
                for output, source in zip(flatten(per_rank), inputs, strict=False):
                    _fill(output, source)
            return
        if len(inputs) == 1:  # torch also accepts the flat list of outputs that goes with a single input
            _fill(outputs, inputs[0])
            return
        for per_input, source in zip(outputs, inputs, strict=False):
            _fill(per_input, source)

    def _scatter(self, op: str, outputs: Any, args: tuple[Any, ...]) -> None:
        if op in ("scatter", "reduce_scatter"):
            pieces = list(args[0])  # empty where a scatter's root is another rank
            if pieces and isinstance(pieces[0], torch.Tensor):
                pieces = [pieces]
            for output, mine in zip(flatten(outputs), pieces, strict=False):
                _fill(output, mine[self._rank])
            return
        for output, source in zip(flatten(outputs), flatten(args[0]), strict=False):
            _fill(output, source.reshape(self._size, -1)[self._rank])

    def _get_backend(self, device: torch.device) -> Any:
        return self._backend
