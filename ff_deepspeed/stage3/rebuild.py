"""Weights under ZeRO-3 after a failure. Every rank calls this; the groups work again."""

from __future__ import annotations

from typing import Any

import torch

from ff_deepspeed.stage3 import layout


def weights(engine: Any, *, from_masters: bool) -> None:
    """All parameters are partitioned, and the persistent ones whole again, as a step leaves them. A collective.

    from_masters: this rank's partitions are cast from its masters first.
    """
    optimizer = engine.optimizer
    if from_masters:
        with torch.no_grad():
            for _, flat, master in layout.derived_weights(optimizer):
                flat.copy_(master)
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].all_gather(persistent)
