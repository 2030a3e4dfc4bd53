"""A generation of a group: the inner group that the members of one epoch have connected, and its handles."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch.distributed as dist

from .solo import SoloGroup

if TYPE_CHECKING:
    from .era import Era
    from .work import SwappableWork


class Generation:
    """One generation of one group. `inner` is None once it is over; `epoch` is None for a solo group."""

    __slots__ = ("__weakref__", "_store", "epoch", "era", "inner", "works")

    def __init__(
        self,
        era: Era,
        inner: dist.ProcessGroup | SoloGroup,
        store: dist.Store | None,
        epoch: int | None,
    ) -> None:
        self.era = era
        self.inner: dist.ProcessGroup | SoloGroup | None = inner
        self.epoch = epoch
        self._store = store  # torch's C++ does not keep the Python side of a store alive
        self.works: weakref.WeakSet[SwappableWork] = weakref.WeakSet()

    def release(self) -> dist.ProcessGroup | None:
        """Ends the generation: handles let go; returns the inner group for closing (nothing else refers to it)."""
        for work in list(self.works):
            work.release()
        inner, self.inner = self.inner, None
        return inner if isinstance(inner, dist.ProcessGroup) else None
