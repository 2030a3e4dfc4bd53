"""A group of all ranks that is connected already, for what ranks tell each other after a failure.

torch connects a group of NCCL's at its first operation, which takes 0.15 s. The groups that put the state together
again are connected then. WORLD often is not: a framework trains in groups of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.distributed as dist

from . import compat

if TYPE_CHECKING:
    from .group import SwappableGroup


class WholeGroup:
    """One per process. All ranks choose the same group: all do the same operations while one is chosen."""

    def __init__(self) -> None:
        self._chosen: SwappableGroup | None = None
        self._thread: int | None = None  # whose operations count; other threads may do theirs earlier or later

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """The first group of all ranks in which this thread begins a collective meanwhile is chosen."""
        self._chosen, self._thread = None, threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def begins(self, group: SwappableGroup, op: str) -> None:
        """`op`, a method of `dist.ProcessGroup`, begins in `group`."""
        if self._thread != threading.get_ident() or self._chosen is not None or op in compat.POINT_TO_POINT:
            return
        if group.spec.ranks == tuple(range(dist.get_world_size())):
            self._chosen = group

    def get(self) -> SwappableGroup | None:
        """For a collective of all ranks; None: WORLD. WORLD too where gloo carries it, which is connected."""
        chosen = self._chosen
        if chosen is None or chosen.closed or compat.device_of(None).type == "cpu":
            return None
        return chosen
