"""Frozen state on disk: CONSTANT tensors lie in no slot, so a job that goes on from its disk finds them in a file.

One rank of a redundancy group writes it, once, when training begins. The file is a line of JSON, then the tensors'
bytes, one after another.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.contract.persisted import Part, constants_path
from ff_core.copy import arena_file
from ff_core.copy.binding import crc32c_at
from ff_core.errors import CorruptSlotError, FailoverError


def of(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Those of `specs` that belong into the file."""
    return [spec for spec in specs if spec.held is Held.CONSTANT and spec.tensor.numel()]


def write(directory: str, rank: int, specs: Sequence[TensorSpec]) -> Part:
    """The constant ones of `specs` into a new file of `rank` below `directory`. Raises OSError."""
    constant = of(specs)
    pieces = [_bytes(spec.tensor) for spec in constant]
    entries = [[spec.name, piece.numel(), _sum(piece)] for spec, piece in zip(constant, pieces, strict=True)]
    head = json.dumps(entries).encode() + b"\n"
    path = Path(constants_path(directory, f"rank{rank:05d}-{secrets.token_hex(8)}.tensors"))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    arena_file.write_pieces(path, [head, *(piece.numpy().data for piece in pieces)])
    return Part(path.name, path.stat().st_size)


def load(path: str, specs: Sequence[TensorSpec]) -> None:
    """The file `path` into the constant ones of `specs`, in place. Those that hold its bytes already are left alone.

    Raises OSError; CorruptSlotError: it is damaged; FailoverError: the script has other frozen state than then.
    """
    wanted = of(specs)
    with open(path, "rb") as file:
        try:
            entries = json.loads(file.readline())
            names = [name for name, _, _ in entries]
        except (ValueError, TypeError):
            raise CorruptSlotError(f"{path} is damaged") from None
        if names != [spec.name for spec in wanted]:
            raise FailoverError(f"the frozen state in {path} is of {names}, the script has {[s.name for s in wanted]}")
        for (name, size, crc), spec in zip(entries, wanted, strict=True):
            mine = _bytes(spec.tensor)
            if mine.numel() != size:
                raise FailoverError(f"{name} has {mine.numel()} bytes, in {path} it has {size}")
            value = torch.empty(size, dtype=torch.uint8)
            if file.readinto(value.numpy().data) != size or _sum(value) != crc:
                raise CorruptSlotError(f"{path} is damaged: the checksum of {name} does not match")
            if not torch.equal(mine, value):
                with torch.no_grad():
                    spec.tensor.copy_(value.view(spec.tensor.dtype).view(spec.tensor.shape))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)


def _sum(piece: torch.Tensor) -> int:
    return crc32c_at(piece.data_ptr(), piece.numel())
