"""What an agent does with versions on disk: slots to files and back, manifests, and the end of old versions.

Runs in threads, beside the agent's event loop. The folders are described in ff_core.contract.persisted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ff_core.contract import persisted
from ff_core.copy import arena_file
from ff_core.copy.arena import Arena
from ff_core.errors import FailoverError

_THREADS = 4  # that take slots: together as fast as memory
#: A network file system shows another node's new files a little later.
_SEEN_S = 60.0
_LOOK_S = 0.25

Reasons = dict[int, str]  # rank -> what went wrong


class Copies:
    """Memory for one version of each of a node's ranks: what is being written to disk. Kept from one version to the
    next: it is as large as the slots."""

    def __init__(self) -> None:
        self._arenas: dict[int, Arena] = {}

    def take(self, sources: Mapping[int, Arena], epoch: int, version: int) -> tuple[dict[int, Arena], Reasons]:
        """Copy slot (epoch, version) of each source: rank -> its copy; and for those that failed, why.

        The sources may be written meanwhile. A copy is whole or not there.
        """
        for rank in self._arenas.keys() - sources.keys():
            self._arenas.pop(rank).close()

        def one(rank: int) -> str:
            try:
                arena_file.take(sources[rank], epoch, version, self._arena(rank, sources[rank]))
                return ""
            except (FailoverError, MemoryError, OSError) as error:
                return str(error)

        with ThreadPoolExecutor(_THREADS, "ff-persist") as pool:
            said = dict(zip(sources, pool.map(one, sources), strict=True))
        failed = {rank: text for rank, text in said.items() if text}
        return {rank: self._arenas[rank] for rank in sources if rank not in failed}, failed

    def _arena(self, rank: int, source: Arena) -> Arena:
        layout, mine = arena_file.room_for(source.layout), self._arenas.get(rank)
        if mine is not None and mine.layout != layout:
            self._arenas.pop(rank).close()
            mine = None
        if mine is None:
            mine = self._arenas[rank] = Arena.create(layout, name=f"ff-persist-{rank}")
        return mine

    def close(self) -> None:
        for arena in self._arenas.values():
            arena.close()
        self._arenas.clear()


def write(directory: str, folder: str, rank: int, copy: Arena, go_on: Callable[[], None]) -> persisted.Part:
    """The copy of `rank` as a file. go_on: see arena_file.write. Raises OSError."""
    where = Path(directory) / folder
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = persisted.rank_file(rank)
    return persisted.Part(name, arena_file.write(copy, where / name, go_on))


def seal(directory: str, manifest: Mapping[str, Any], keep: int, go_on: Callable[[], None]) -> None:
    """All parts are written, by this node and others: complete the version, and remove all but the `keep` newest.

    go_on: called while others' files are waited for. Raises OSError; FailoverError if this node does not see what
    others have written.
    """
    made = persisted.Manifest.from_wire(manifest)
    folder = Path(directory) / made.id
    deadline = time.monotonic() + _SEEN_S
    while missing := [part.file for part in made.ranks.values() if not _is_there(folder / part.file, part.size)]:
        if time.monotonic() > deadline:
            raise FailoverError(
                f"{folder / missing[0]} was written by another node and is not seen here: persist_dir must be on a "
                "file system that all nodes share"
            )
        go_on()
        time.sleep(_LOOK_S)
    arena_file.write_pieces(folder / persisted.MANIFEST, [persisted.encode(manifest)])
    arena_file.sync_folder(folder.parent)
    _remove_old(Path(directory), made.id, keep)


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _remove_old(directory: Path, newest: str, keep: int) -> None:
    """Of the complete versions the `keep` newest stay; of the others, and of those never completed, nothing does."""
    stay = {path.name for path in persisted.complete(directory)[:keep]} | {newest}
    for folder in directory.glob("version-*"):
        if folder.name not in stay:
            with suppress(OSError):  # the manifest first: half a version must not look like a whole one
                (folder / persisted.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def load(directory: str, folder: str, parts: Mapping[int, Any], targets: Mapping[int, Arena], epoch: int) -> Reasons:
    """Files into the ranks' own arenas, as slots of `epoch`, one after another. parts: rank -> [file, bytes].

    Returns what went wrong. A slot is whole, or empty.
    """
    failed: Reasons = {}
    for rank, (file, size) in parts.items():
        try:
            with arena_file.read(Path(directory) / folder / file, size) as source:
                arena_file.put(source, epoch, targets[rank])
        except (OSError, MemoryError, FailoverError) as error:
            failed[rank] = str(error)
    return failed
