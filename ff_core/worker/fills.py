"""Random initialisation on several cores, to the bit: for a replacement, whose job waits for it.

torch fills a tensor on the host from one generator, on one core, and a large model's weights take it seconds. A large
fill is cut into pieces here. Each piece gets a generator of its own, set to where the one generator would have been.
torch fills the pieces side by side. The generator ends where it would have ended.

    with fills.in_parallel():
        ...                     # tensor.normal_(), tensor.uniform_()

This relies on how many numbers torch takes for an element. That is tried first, once in a process; if torch fills in
another way than is known here, its own method is used.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

from ff_core.copy.binding import mt19937_skip

#: Elements. torch makes normal numbers in blocks of 16, so a piece is a multiple of that.
_SMALLEST, _PIECE, _BLOCK = 1 << 18, 1 << 17, 16
#: More threads wait for the interpreter's lock and for new pages: with 8 a fill of 1 GiB took 0.28 s, with 16 0.49 s.
_MOST_THREADS = 8
_PIECES_OF_A_THREAD = 2
_METHODS = ("normal_", "uniform_")
#: torch's state of a generator on the host: 64 bits of seed, left, seeded, 64 bits of next, 624 words in 64 bits each.
_LEFT, _NEXT, _WORDS, _COUNT = 8, 16, 24, 624


@contextmanager
def in_parallel() -> Iterator[None]:
    """Large fills of float32 tensors on the host run on several cores, in all threads of this process."""
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    if threads < 2 or not _as_known():
        yield
        return
    originals = {name: getattr(torch.Tensor, name) for name in _METHODS}
    with ThreadPoolExecutor(threads, "ff-fill") as pool:
        for name, original in originals.items():
            setattr(torch.Tensor, name, _method(original, pool, _PIECES_OF_A_THREAD * threads))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(torch.Tensor, name, original)


def _method(original: Callable[..., Any], pool: ThreadPoolExecutor, pieces: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def fill(self: torch.Tensor, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Any:
        if not _is_for_us(self, generator):
            return original(self, *args, generator=generator, **kwargs)
        size = max(_PIECE, self.numel() // pieces // _BLOCK * _BLOCK)
        _fill(pool, original, self, generator or torch.default_generator, args, kwargs, size)
        return self

    return fill


def _is_for_us(tensor: torch.Tensor, generator: torch.Generator | None) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() >= _SMALLEST
        and tensor.is_contiguous()
        and not (tensor.requires_grad and torch.is_grad_enabled())  # torch refuses that
        and (generator is None or generator.device.type == "cpu")
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def _fill(
    pool: ThreadPoolExecutor,
    original: Callable[..., Any],
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
    wait(started)
    for each in started:
        each.result()


class _State:
    """Where a generator is, to be moved on."""

    def __init__(self, generator: torch.Generator) -> None:
        self._bytes = generator.get_state().clone()
        self._words = self._bytes[_WORDS : _WORDS + 8 * _COUNT].view(torch.int64).to(torch.int32).contiguous()

    def generator(self) -> torch.Generator:
        """A new one, here."""
        made = torch.Generator()
        made.set_state(self._bytes)
        return made

    def skip(self, count: int) -> None:
        """As after `count` numbers of 32 bits."""
        left = self._bytes[_LEFT : _LEFT + 4].view(torch.int32)
        used = mt19937_skip(self._words.data_ptr(), 1 + _COUNT - int(left), count)
        left.fill_(1 + _COUNT - used)
        self._bytes[_NEXT : _NEXT + 8].view(torch.int64).fill_(used)
        wide = self._words.to(torch.int64) & 0xFFFFFFFF
        self._bytes[_WORDS : _WORDS + 8 * _COUNT].view(torch.int64).copy_(wide)


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
                except RuntimeError:
                    return False
                if not torch.equal(made, wanted) or not torch.equal(ours.get_state(), theirs.get_state()):
                    return False
    return True
