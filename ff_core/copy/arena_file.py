"""A version of one rank as a file: an arena with one slot, byte by byte, as it lies in memory.

Header, init journal, slot and scalars have their checksums in the arena itself. So whoever reads the file knows whether
it is what was written. The file appears under its name when all of it is on the disk, never before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import FileIO
from pathlib import Path

from ff_core.copy import memory
from ff_core.copy.arena import Arena, ArenaLayout, slot_with
from ff_core.errors import CorruptSlotError

_PIECE_BYTES = 8 << 20


def room_for(layout: ArenaLayout) -> ArenaLayout:
    """The layout of a file for one version of what an arena of `layout` holds."""
    return replace(layout, slots=1)


def take(source: Arena, epoch: int, version: int, target: Arena) -> None:
    """Slot (epoch, version) of `source`, and its journal, into `target`, which has the layout of `room_for`.

    The source may be written meanwhile: CorruptSlotError or CopyCancelled if it was. EngineError.
    """
    source.copy_slot(slot_with(source, epoch, version), target, 0)
    target.set_journal(source.journal())


def put(source: Arena, epoch: int, target: Arena) -> None:
    """What `take` took, into the first slot of `target` and its journal, as a version of `epoch`. CorruptSlotError,
    EngineError: the slot is empty."""
    target.set_journal(source.journal())
    source.copy_slot(0, target, 0)
    target.restamp(0, epoch)


def write(arena: Arena, path: Path, go_on: Callable[[], None]) -> int:
    """The bytes of `arena`, of which nobody changes any, as file `path`. Returns their number. Raises OSError.

    go_on: called before each piece; what it raises ends the writing.
    """
    with arena.memory() as content:
        write_pieces(path, [content], go_on)
        return len(content)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview], go_on: Callable[[], None] = lambda: None) -> None:
    """`pieces`, one after another, as file `path`: written under another name, forced to the disk, then named.

    Raises OSError, and what `go_on` raises; then there is no file.
    """
    aside = path.with_name(f".{path.name}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            with memoryview(piece).cast("B") as whole:
                at = 0
                while at < len(whole):
                    go_on()
                    at += os.write(descriptor, whole[at : at + _PIECE_BYTES])
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        aside.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    aside.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """What was named, renamed or removed in the folder `path` stays so after a loss of power. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, wanted: int) -> Arena:
    """The file that `write` has written, in memory. wanted: its size in bytes.

    Raises OSError, MemoryError; CorruptSlotError if it is not of that size, or not an arena. The slot is not verified
    yet: `put` does that.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != wanted or not size:
            raise CorruptSlotError(f"{path} has {size} bytes, not {wanted}")
        descriptor = memory.allocate(f"ff-file-{path.name}", size)
        try:
            mapping = memory.Mapping(descriptor, size)
            try:
                _fill(file, mapping)
            finally:
                mapping.close()
        except BaseException:
            os.close(descriptor)
            raise
    return Arena.from_fd(descriptor)


def _fill(file: FileIO, mapping: memory.Mapping) -> None:
    at = 0
    with mapping.content() as target:
        while at < len(target):
            got = file.readinto(target[at : at + _PIECE_BYTES])
            if not got:
                raise CorruptSlotError(f"the file ended after {at} of {len(target)} bytes")
            at += got
