"""The copy engine of one rank: its arena and the writer of it. A replacement has them before its trainer is built."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ff_core.config.schema import FailoverConfig
from ff_core.copy.arena import Arena
from ff_core.copy.handle import Handle
from ff_core.copy.writer import Writer
from ff_core.worker.parts import WorkerParts


class CopyEngine(Handle):
    """arena: the rank's slots, its file is owned by this object.  writer: of that arena."""

    def __init__(self, arena: Arena, parts: WorkerParts, config: FailoverConfig) -> None:
        self.arena = arena
        self.writer = Writer(
            arena,
            page=parts.page,
            notify_fd=parts.notify_fd,
            checksum=config.checksum,
            bandwidth_bytes_per_s=config.bandwidth_limit_bytes_per_s,
        )

    def is_of(self, descriptor: int) -> bool:
        """The arena is the file behind `descriptor`."""
        return os.path.sameopenfile(self.arena.fd, descriptor)

    def close(self) -> None:
        """Join the writer's threads. The arena goes with what still uses it."""
        self.writer.close()


def open_engine(
    fds: Sequence[int], parts: WorkerParts, config: FailoverConfig, early: CopyEngine | None = None
) -> CopyEngine:
    """The engine on the arena whose descriptor came with a message. fds: become ours.

    early: is taken if it is of that arena, and closed otherwise.
    """
    taken = early if early is not None and early.is_of(fds[0]) else None
    if early is not None and taken is None:
        early.close()
    for fd in fds[1:] if taken is None else fds:
        os.close(fd)
    return taken or CopyEngine(Arena.from_fd(fds[0]), parts, config)
