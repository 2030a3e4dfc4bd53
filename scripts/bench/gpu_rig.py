"""A rank's state on a GPU with its arena and writer, for measurements of the copy engine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import torch

from ff_core.contract.stamps import stamp
from ff_core.copy.arena import Arena, ArenaLayout, Segment
from ff_core.copy.page import StatusPage
from ff_core.copy.writer import Writer

MIB = 1 << 20
_DEADLINE_S = 120.0


class GpuRig:
    """`size` bytes of random state on the current device, as one tensor, and everything needed to copy it."""

    def __init__(self, size: int, chunk_bytes: int = MIB) -> None:
        self.size = size
        self.state = torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")
        self.arena = Arena.create(ArenaLayout(0, size, 0, 4096, 4096, chunk_bytes))
        self.page = StatusPage.create()
        self.writer = Writer(self.arena, self.page)
        self.version = 0

    def set_flat(self) -> None:
        self.writer.set_segments([(self.state.data_ptr(), self.size, 0, self.state.get_device())])

    def set_fragments(self, count: int, seed: int, mixed: bool = False) -> None:
        """The same bytes in `count` scattered pieces: equal ones, or of sizes from bytes to megabytes."""
        self.writer.set_segments(fragments(self.state, count, seed, mixed))

    def begin(self) -> float:
        """A version of the current stream's state; returns the seconds that the calling thread was busy with it."""
        self.version += 1
        started = time.perf_counter()
        self.writer.begin(self.version % 2, 0, self.version, stream())
        self.writer.seal(self.version, b"")
        return time.perf_counter() - started

    def device_wait(self) -> float:
        """The current stream may change the state behind the copy; seconds that the calling thread was busy."""
        started = time.perf_counter()
        self.writer.device_wait(self.version, stream(), _DEADLINE_S)
        return time.perf_counter() - started

    def wait_complete(self) -> None:
        """Until the newest version is complete in its slot, checksums included."""
        target, end = stamp(0, self.version), time.monotonic() + _DEADLINE_S
        while self.page.load("own_complete") < target:
            self.writer.check()
            if time.monotonic() > end:
                raise TimeoutError(f"version {self.version} was not complete within {_DEADLINE_S:g} s")
            time.sleep(20e-6)

    def copy_s(self) -> float:
        """Seconds from begin to complete, on an idle device."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.begin()
        self.wait_complete()
        return time.perf_counter() - started

    def close(self) -> None:
        self.writer.close()
        self.arena.close()
        self.page.close()


@contextmanager
def rig(size: int) -> Iterator[GpuRig]:
    one = GpuRig(size)
    try:
        yield one
    finally:
        one.close()
        del one.state
        torch.cuda.empty_cache()


def stream() -> int:
    """The current stream as the engine takes it."""
    number: int = torch.cuda.current_stream().cuda_stream
    return number


def fragments(state: torch.Tensor, count: int, seed: int, mixed: bool) -> list[Segment]:
    """All of `state` in `count` pieces of whole 4-byte words, in shuffled payload order."""
    rng = random.Random(seed)
    size, base, device = state.numel(), state.data_ptr(), state.get_device()
    if mixed:
        cuts = sorted(4 * int(rng.random() ** 2 * size / 4) for _ in range(count - 1))
    else:
        cuts = [size // count // 4 * 4 * i for i in range(1, count)]
    edges = [0, *cuts, size]
    pieces = [(a, b - a) for a, b in pairwise(edges) if b > a]
    rng.shuffle(pieces)
    segments, at = [], 0
    for start, length in pieces:
        segments.append((base + start, length, at, device))
        at += length
    return segments


def alternate(measures: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Each measure `rounds` times, taking turns after one round that does not count."""
    for measure in measures:
        measure()
    results: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for result, measure in zip(results, measures, strict=True):
            result.append(measure())
    return results


def ratio(floor: list[float], ours: list[float]) -> float:
    """Median of floor over ours, pair by pair: 1 is as fast as the floor."""
    return round(median(a / b for a, b in zip(floor, ours, strict=True)), 4)


def rate(size: int, seconds: list[float]) -> float:
    """GB/s at the median."""
    return round(size / median(seconds) / 1e9, 2)
