"""A generation of a group: the inner group that the members of one epoch have connected, and its handles."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch.distributed as dist

from . import nccl
from .solo import SoloGroup

if TYPE_CHECKING:
    from .era import Era
    from .work import SwappableWork


class Generation:
    """One generation of one group. `inner` is None once it is over; `epoch` is None for a solo group."""

    __slots__ = ("__weakref__", "_aborting", "_store", "epoch", "era", "inner", "works")

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
        self._aborting = False
        self._store = store  # torch's C++ does not keep the Python side of a store alive
        self.works: weakref.WeakSet[SwappableWork] = weakref.WeakSet()

    def to_abort(self) -> dist.ProcessGroup | None:
        """The inner group, for who will abort it, if NCCL has a part in it. None for the second who asks."""
        inner = self.inner
        if self._aborting or not isinstance(inner, dist.ProcessGroup) or not nccl.has_part_in(inner):
            return None
        self._aborting = True
        return inner

    def release(self) -> dist.ProcessGroup | None:
        """Ends the generation: handles let go; returns the inner group for closing (nothing else refers to it)."""
        for work in list(self.works):
            work.release()
        inner, self.inner = self.inner, None
        return inner if isinstance(inner, dist.ProcessGroup) else None
