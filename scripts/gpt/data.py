"""The text of the standard library of the Python that runs this, as training data.

The same interpreter gives the same bytes in the same order on every run and every rank; a token is a byte.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

#: Not the library itself: packages installed into it, its tests, caches.
_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "ensurepip"})


def library_sources() -> list[Path]:
    """The library's source files, sorted by their path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for directory, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _EXCLUDED]
        files += [Path(directory, name) for name in names if name.endswith(".py")]
    if not files:
        raise SystemExit(f"no Python sources in {root}: install the standard library's sources")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def text_file(cache: Path | None = None) -> Path:
    """One file with all of the text, made on first use and shared by all processes of the machine.

    cache: directory to keep it in, default the machine's temporary directory. Every process may call this at once.
    """
    # A replacement comes here while all others wait: nothing is listed or read if the file is there. An interpreter's
    # library does not change but with its version.
    key = hashlib.sha256(f"{sys.version} {sysconfig.get_paths()['stdlib']}".encode())
    directory = cache or Path(tempfile.gettempdir()) / f"fftrain-text-{os.getuid()}"
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"stdlib-{key.hexdigest()[:16]}.bin"
    if not file.exists():
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as new:
            for path in library_sources():
                new.write(path.read_bytes())
                new.write(b"\n")
        os.replace(new.name, file)  # noqa: PTH105 - whole or not at all, whoever else writes it too
    return file


class ByteWindows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """`count` pieces of the text, evenly spread: (x, y), int64 of shape (sequence,), y being x one byte later."""

    def __init__(self, file: Path, sequence: int, count: int) -> None:
        self.file, self.sequence, self.count = file, sequence, count
        last = file.stat().st_size - sequence - 1
        if last < 0:
            raise SystemExit(f"{file} is shorter than one sequence of {sequence} bytes")
        self.last = last
        self._text: np.memmap[Any, np.dtype[np.uint8]] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._text is None:  # mapped anew in every process that reads
            self._text = np.memmap(self.file, np.uint8, "r")
        start = self.last * index // max(self.count - 1, 1)
        piece = torch.from_numpy(self._text[start : start + self.sequence + 1].astype(np.int64))
        return piece[:-1], piece[1:]


class ResumedSampler(DistributedSampler[tuple[torch.Tensor, torch.Tensor]]):
    """Shuffles anew in every epoch; `skip` leaves out that many of this rank's samples (after loading a checkpoint)."""

    skip = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(list(super().__iter__())[self.skip :])

    def __len__(self) -> int:
        return super().__len__() - self.skip
