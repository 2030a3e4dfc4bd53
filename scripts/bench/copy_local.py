"""Inside one process: live tensors into the own slot against memcpy, and how long the training thread is held up."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import time
from collections.abc import Callable

from ff_core.contract.stamps import stamp
from ff_core.copy import memory
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.page import StatusPage
from ff_core.copy.writer import Writer

_DEADLINE_S = 60.0


def layout(size: int, rank: int = 0, chunk: int = 1 << 20) -> ArenaLayout:
    """An arena whose replicas hold all of `size` bytes."""
    return ArenaLayout(rank, size, 0, 4096, 4096, chunk)


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Anonymous:
    """`size` bytes of memory as an allocator gives it to tensors, every page touched."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.view = memoryview(self._map)
        ctypes.memset(self.address, 1, size)


def commit(writer: Writer, page: StatusPage, bell: int, version: int, timeout_s: float) -> None:
    """Copy the live tensors as `version` of epoch 1, and wait until it is committed. Raises TimeoutError."""
    writer.begin(version % 2, 1, version)
    writer.seal(version, b"scalars")
    while page.load("committed") < stamp(1, version):
        if not select.select([bell], [], [], timeout_s)[0]:
            raise TimeoutError(f"version {version} was not committed within {timeout_s} s")
        os.eventfd_read(bell)


class LocalCopy:
    """`size` bytes of live memory, an own slot, and a plain buffer of the same kind of memory for comparison."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._live = Anonymous(size)
        self._plain_fd = memory.allocate("bench-plain", size)
        self._plain = memory.Mapping(self._plain_fd, size)
        self._arena = Arena.create(layout(size))
        self._writer = Writer(self._arena)
        self._writer.set_segments([(self._live.address, size, 0, -1)])
        self._version = 0

    def memcpy(self) -> float:
        """Seconds of one single-thread memcpy of everything."""
        return timed(lambda: ctypes.memmove(self._plain.address, self._live.address, self.size))

    def copy(self) -> float:
        """Seconds from begin to "copied": the engine's one copy thread, checksummed, into the own slot."""
        version = self._version
        self._version += 1

        def run() -> None:
            self._writer.begin(version % 2, 1, version)
            self._writer.wait_copied(version, _DEADLINE_S)

        seconds = timed(run)
        self._writer.seal(version, b"scalars")
        while self._writer.stats().versions <= version:
            time.sleep(0.0005)
        return seconds

    def blocked(self, window_s: float = 0.05) -> float:
        """Seconds that the calls of one version take, with `window_s` of forward and backward between them."""
        version = self._version
        self._version += 1
        spent = timed(lambda: self._writer.begin(version % 2, 1, version))
        time.sleep(window_s)
        spent += timed(lambda: self._writer.seal(version, b"scalars" * 500))
        time.sleep(window_s)
        spent += timed(lambda: self._writer.wait_copied(version, _DEADLINE_S))
        while self._writer.stats().versions <= version:
            time.sleep(0.0005)
        return spent

    def close(self) -> None:
        self._writer.close()
        self._arena.close()
        self._plain.close()
        os.close(self._plain_fd)
