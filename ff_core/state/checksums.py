"""A number per tensor that another content makes another, most likely; computed where the tensor lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ff_core.state.arriving import Arriving

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MOST_ROW, _LEAST_ROW = 4096, 64  # words
_FEW_BYTES = 16 << 20  # of which rows may be short


def sums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [number of tensors]: sums of the tensors' words, on the device of the first one. Nothing is waited for."""
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        return torch.stack([_sum(tensor.detach()).to(tensors[0].device) for tensor in tensors])


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """The same for the same content, wherever it lies. Words of eight bytes: on a host, summing narrow ones into wide
    ones takes thirty times as long."""
    flat = tensor.reshape(-1)
    if flat.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    whole = flat.numel() - flat.numel() % max(1, 8 // flat.element_size())
    parts = [flat[:whole].view(torch.int64)] if whole else []
    if whole < flat.numel():
        parts.append(flat[whole:].view(_WORDS[flat.element_size()]))
    total, *rest = (part.sum(dtype=torch.int64) for part in parts)
    return total + rest[0] if rest else total


class _Place(NamedTuple):
    """A tensor's place in memory; bytes. number: in the caller's list."""

    number: int
    storage: int
    start: int
    end: int


class Contents:
    """What tensors hold now, in this process. Where they lie one behind the other, as in the flat buffers of an
    optimizer, one operation on the device does for all of them: their memory is summed in rows that no two share.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._places = [tensor.data_ptr() for tensor in tensors]
        self._sums: list[tuple[torch.Tensor, list[tuple[int, int]]]] = []  # sums of rows; (tensor, its first row), ...
        with torch.no_grad():
            for run in _runs(tensors):
                self._sums.append(self._of(run))

    def changed(self) -> Changed:
        """Since this was made; nothing is waited for."""
        now = Contents(self._tensors)
        moved = [i for i, (a, b) in enumerate(zip(self._places, now._places, strict=True)) if a != b]
        if moved:
            return Changed(moved, [])
        pairs = zip(self._sums, now._sums, strict=True)
        return Changed([], [(Arriving(before != after), owners) for (before, owners), (after, _) in pairs])

    def _of(self, run: list[_Place]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        first = self._tensors[run[0].number]
        row = math.gcd(*(place.end - place.start for place in run), _MOST_ROW * 8) if len(run) > 1 else 0
        size, short = run[-1].end - run[0].start, row < _LEAST_ROW * 8
        if len(run) == 1 or row % 8 or run[0].start % 8 or (short and size > _FEW_BYTES):
            each = [_sum(self._tensors[place.number].detach()) for place in run]
            return torch.stack(each), [(place.number, number) for number, place in enumerate(run)]
        flat = torch.empty(0, dtype=torch.uint8, device=first.device)
        flat.set_(first.untyped_storage(), run[0].start, (size,), (1,))
        rows = flat.view(torch.int64).view(-1, row // 8).sum(1)
        return rows, [(place.number, (place.start - run[0].start) // row) for place in run]


class Changed:
    """Which tensors hold something else than before. Asked on the device, answered later."""

    def __init__(self, moved: list[int], rows: list[tuple[Arriving, list[tuple[int, int]]]]) -> None:
        self._moved, self._rows = moved, rows

    def on_device(self) -> bool:
        """places() might have to wait for a device."""
        return not all(rows.arrived() for rows, _ in self._rows)

    def places(self) -> list[int]:
        """Indices in the list of tensors, ascending. Waits for the answer."""
        found = list(self._moved)
        for rows, owners in self._rows:
            different = rows.host()
            if different.any():
                ends = [*(first for _, first in owners[1:]), len(different)]
                found += [i for (i, first), end in zip(owners, ends, strict=True) if different[first:end].any()]
        return sorted(found)


def _runs(tensors: Sequence[torch.Tensor]) -> list[list[_Place]]:
    """Tensors that lie one behind the other without a gap, in one storage; others alone."""
    runs: list[list[_Place]] = []
    placed = []
    for index, tensor in enumerate(tensors):
        if tensor.layout is torch.strided and tensor.is_contiguous() and tensor.numel():
            storage = tensor.untyped_storage().data_ptr()
            start = tensor.data_ptr() - storage
            placed.append(_Place(index, storage, start, start + tensor.numel() * tensor.element_size()))
        else:
            runs.append([_Place(index, 0, 0, 0)])
    for place in sorted(placed, key=lambda place: (place.storage, place.start, place.end)):
        last = runs[-1][-1] if runs else None
        if last is not None and (last.storage, last.end) == (place.storage, place.start) and last.end:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
