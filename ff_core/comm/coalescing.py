"""A block of coalesced operations: torch launches at its end, together, what a group is given within."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

if TYPE_CHECKING:
    from .generation import Generation
    from .host import Collective
    from .journal import Entry


class Block:
    """Between `_start_coalescing` and `_end_coalescing` of one group. It belongs to one generation.

    A halt is noticed behind it: NCCL counts in each thread the blocks that are open, and an open one swallows later
    calls.

    followed: all of it, as it runs on the device.  entries: the journal's, whose outputs are known at the end.
    """

    def __init__(self, generation: Generation, device: torch.device, followed: Collective | None) -> None:
        self.generation, self.device, self.followed = generation, device, followed
        self._thread = threading.get_ident()
        self.entries: list[Entry] = []

    def is_own(self) -> bool:
        """Whether the calling thread began it."""
        return self._thread == threading.get_ident()

    def capture(self, _: Any = None) -> None:
        """The outputs are there."""
        for entry in self.entries:
            entry.capture(None)

    def abandon(self) -> None:
        """One of its operations failed, or its generation is over: nobody waits for what was begun."""
        if self.followed is not None:
            self.followed.forget()
        if isinstance(self.generation.inner, dist.ProcessGroup):
            with contextlib.suppress(Exception):  # of the same cause
                self.generation.inner._end_coalescing(self.device)


def forget_torchs(group: dist.ProcessGroup) -> None:
    """torch's own note that `group` is within such a block outlives an exception there; all-reduces would be noted down
    instead of done from then on."""
    c10d._world.pg_coalesce_state.pop(group, None)
