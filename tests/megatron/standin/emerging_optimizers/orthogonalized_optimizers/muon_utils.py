"""Newton-Schulz iterations, on matrices that tensor-parallel ranks have parts of."""

from __future__ import annotations

from typing import Any

import torch


def newton_schulz_tp(
    x: torch.Tensor, steps: int, coefficient_type: str, tp_group: Any, partition_dim: int | None = None,
    mode: str = "duplicated",
) -> torch.Tensor:  # fmt: skip
    if partition_dim is None:
        return _newton_schulz(x, steps)
    parts = [torch.empty_like(x) for _ in range(tp_group.size())]
    torch.distributed.all_gather(parts, x.contiguous(), tp_group)
    whole = _newton_schulz(torch.cat(parts, dim=partition_dim), steps)
    return whole.chunk(tp_group.size(), dim=partition_dim)[tp_group.rank()]


def _newton_schulz(x: torch.Tensor, steps: int) -> torch.Tensor:
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x
