"""Random initialisation on several cores, to the bit: for a replacement, whose job waits for it.

torch fills a tensor on the host from one generator, on one core, and a large model's weights take it seconds. A large
fill is cut into pieces here. Each piece gets a generator of its own, set to where the one generator would have been.
torch fills the pieces side by side. The generator ends where it would have ended.

    with fills.on(pool, pieces):
        ...                     # tensor.normal_(), tensor.uniform_()

This relies on how many numbers torch takes for an element. That is tried first, once in a process; if torch fills in
another way than is known here, its own method is used.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from ff_core.copy.binding import generator_skip
from ff_core.errors import EngineError
from ff_core.worker.pieces import PIECE, Method, finish, on_host, replaced

#: Elements. torch makes normal numbers in blocks of 16, so a piece is a multiple of that.
_BLOCK = 16
_METHODS = ("normal_", "uniform_")


@contextmanager
def on(pool: Executor, pieces: int) -> Iterator[None]:
    """Large fills of float32 tensors on the host are cut into so many pieces at most, which `pool` works on."""
    if not _as_known():
        yield
        return
    with replaced({name: functools.partial(_method, pool=pool, pieces=pieces) for name in _METHODS}):
        yield


def _method(original: Method, pool: Executor, pieces: int) -> Method:
    def fill(self: torch.Tensor, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Any:
        if not _is_for_us(self, generator):
            return original(self, *args, generator=generator, **kwargs)
        size = max(PIECE, self.numel() // pieces // _BLOCK * _BLOCK)
        _fill(pool, original, self, generator or torch.default_generator, args, kwargs, size)
        return self

    return fill


def _is_for_us(tensor: torch.Tensor, generator: torch.Generator | None) -> bool:
    return (
        tensor.dtype == torch.float32
        and (generator is None or generator.device.type == "cpu")
        and on_host(tensor)  # torch refuses one that requires a gradient
    )


def _fill(
    pool: Executor,
    original: Method,
    tensor: torch.Tensor,
    generator: torch.Generator,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    piece: int,
) -> None:
    """piece: elements, a multiple of _BLOCK."""
    flat = tensor.detach().view(-1)
    size = flat.numel()
    state = _State(generator)
    started = []
    # The last piece has what is left over too: of it torch makes the last 16 numbers anew.
    cuts = [*range(0, max(1, size - piece + 1), piece), size]
    for start, end in itertools.pairwise(cuts):
        own = state.generator()

        def make(start: int = start, end: int = end, own: torch.Generator = own) -> None:
            with torch.no_grad():
                original(flat[start:end], *args, generator=own, **kwargs)

        if end == size:
            make()
            generator.set_state(own.get_state())
        else:
            started.append(pool.submit(make))
            state.skip(end - start)
    finish(started)


class _State:
    """Where a generator is, to be moved on."""

    def __init__(self, generator: torch.Generator) -> None:
        self._bytes = generator.get_state().clone()

    def generator(self) -> torch.Generator:
        """A new one, here."""
        made = torch.Generator()
        made.set_state(self._bytes)
        return made

    def skip(self, count: int) -> None:
        """As after `count` numbers of 32 bits. In one call: the threads that fill are after the interpreter's lock."""
        generator_skip(self._bytes.data_ptr(), self._bytes.numel(), count)


@functools.cache
def _as_known() -> bool:
    """Whether pieces give what torch gives at once, and leave the generator where torch leaves it."""
    size, piece = 4 * 4096 + 13, 4096
    with ThreadPoolExecutor(2, "ff-fill") as pool:
        for name in _METHODS:
            original = getattr(torch.Tensor, name)
            for used in (0, 1, 623):
                ours, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
                for generator in (ours, theirs):
                    torch.rand(used, generator=generator)
                made, wanted = torch.empty(size), torch.empty(size)
                original(wanted, 0.5, 2.0, generator=theirs)
                try:
                    _fill(pool, original, made, ours, (0.5, 2.0), {}, piece)
                except (RuntimeError, EngineError):
                    return False
                if not torch.equal(made, wanted) or not torch.equal(ours.get_state(), theirs.get_state()):
                    return False
    return True
