"""Object files by what they were made from: a build compiles what has changed, and tests share what they compile.

An entry's name is the fingerprint of everything that went into it: a change of anything makes another entry, and none
is ever wrong. Several processes may use one directory at once.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

LIMIT_BYTES = 512 << 20


class ObjectCache:
    """directory: is made when the first entry is.  limit_bytes: what all entries together may take; those that nobody
    used for the longest go first.
    """

    def __init__(self, directory: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self._limit = limit_bytes

    def fetch(self, fingerprint: str, out: Path) -> bool:
        """Copy the entry to `out`. False: there is none."""
        entry = self._directory / fingerprint
        try:
            os.utime(entry)  # used now
            shutil.copyfile(entry, out)
        except FileNotFoundError:  # never made, or dropped by another process
            return False
        return True

    def store(self, fingerprint: str, made: Path) -> None:
        """Keep a copy of `made`. It appears whole or not at all."""
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / f".{fingerprint}.{os.getpid()}"
        try:
            shutil.copyfile(made, partial)
            partial.replace(self._directory / fingerprint)
        finally:
            partial.unlink(missing_ok=True)

    def prune(self) -> None:
        """Drop what is over the limit."""
        entries = []
        for path in self._directory.glob("*"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another process pruned
                continue
            entries.append((found.st_mtime_ns, found.st_size, path))
        left = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if left <= self._limit:
                return
            path.unlink(missing_ok=True)
            left -= size


def of_environment() -> ObjectCache | None:
    """The one in this virtual environment. None outside of one: a system's Python is not the place."""
    return ObjectCache(Path(sys.prefix) / "objects") if sys.prefix != sys.base_prefix else None
