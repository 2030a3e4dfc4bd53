"""The agent's part of versions on disk: it writes what the controller asks for, from memory, while training goes on.

Order of one version: copy the slots in memory, at once, before training overwrites them; write the copies to files, as
slow as the disk is; say so. One node completes the version when all nodes have said so. See docs/persist.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from ff_core.agent import version_files
from ff_core.agent.state import NodeState
from ff_core.copy.arena import Arena
from ff_core.errors import FailoverError

_LOOK_S = 0.01


class _Ended(FailoverError):
    """The job is over, or its script starts again."""


class Persister:
    """Of one agent. At most one version is written at a time: the controller sees to that."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._copies = version_files.Copies()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._reading = 0  # arenas that are held
        self._seals = False  # persist_seal is still to come, or at work

    # ---- from the controller ----------------------------------------------------------------------------------------

    def on_persist(
        self, id: str, slot_epoch: int, version: int, ranks: dict[int, str], still: bool, seals: bool
    ) -> None:  # fmt: skip
        """Write slot (slot_epoch, version) of these ranks. ranks: rank -> "own" or "replica", the arena that has it.

        still: nobody changes the slots now. Then they are copied one after another: that takes less memory.
        seals: persist_seal will come to this node.
        """
        self._seals = seals
        arenas = {rank: self._state.store.find(kind, rank) for rank, kind in ranks.items()}
        sources = {rank: arena for rank, arena in arenas.items() if arena is not None}
        for rank in arenas.keys() - sources.keys():
            self._said(id, rank, reason="its memory is not here any more")
        for arena in sources.values():
            arena.hold()
        self._reading += len(sources)
        steps = [{rank: arena} for rank, arena in sources.items()] if still else [sources]
        self._spawn(self._write(id, slot_epoch, version, steps))

    def on_persist_seal(self, id: str, manifest: dict[str, Any], keep: int) -> None:
        """All files of a version are written: complete it. Without a manifest: it was given up."""
        if manifest:
            self._spawn(self._seal(id, manifest, keep))
        else:
            self._seals = False

    async def on_persist_load(self, id: str, epoch: int, ranks: dict[int, Any]) -> None:
        """The job goes on from a version on disk: files into the ranks' own arenas. ranks: rank -> [file, bytes]."""
        arenas = {rank: self._state.store.own[rank] for rank in ranks}
        directory = self._state.config.persist_dir
        reasons = await asyncio.to_thread(version_files.load, directory, id, ranks, arenas, epoch)
        self._state.send("persist_loaded", id=id, epoch=epoch, reasons=reasons)

    # ---- at work ----------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, id: str, epoch: int, version: int, steps: list[dict[int, Arena]]) -> None:
        """steps: rank -> its arena, of those that are copied at once."""
        held = list(steps)
        try:
            while held:
                copies, failed = await asyncio.to_thread(self._copies.take, held[0], epoch, version)
                self._release(held.pop(0))
                for rank, reason in failed.items():
                    self._said(id, rank, reason=reason)
                for rank, copy in copies.items():
                    await self._write_one(id, rank, copy)
        finally:
            for step in held:
                self._release(step)

    def _release(self, step: dict[int, Arena]) -> None:
        for arena in step.values():
            arena.release()
        self._reading -= len(step)

    async def _write_one(self, id: str, rank: int, copy: Any) -> None:
        directory = self._state.config.persist_dir
        try:
            part = await asyncio.to_thread(version_files.write, directory, id, rank, copy, self._go_on)
        except (OSError, FailoverError) as error:
            self._said(id, rank, reason=f"{directory}: {error}")
        else:
            self._said(id, rank, file=part.file, size=part.size)

    def _go_on(self) -> None:
        if self._stopping:
            raise _Ended("the job is over")

    def _said(self, id: str, rank: int, *, file: str = "", size: int = 0, reason: str = "") -> None:
        self._state.send("persist_part", id=id, rank=rank, file=file, size=size, reason=reason)

    async def _seal(self, id: str, manifest: dict[str, Any], keep: int) -> None:
        directory = self._state.config.persist_dir
        try:
            await asyncio.to_thread(version_files.seal, directory, manifest, keep, self._go_on)
        except (OSError, FailoverError) as error:
            self._state.send("persist_sealed", id=id, reason=str(error))
        else:
            self._state.send("persist_sealed", id=id, reason="")
        self._seals = False

    async def quiet(self) -> None:
        """The arenas are about to be freed: wait until none of them is being read."""
        while self._reading:
            await asyncio.sleep(_LOOK_S)

    async def finish(self, deadline: float) -> None:
        """Wait until what is being written is complete, as far as this node sees to that. deadline: time.monotonic()"""
        while (self._tasks or self._seals) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """The job is over: what is still being written stays unfinished, and counts for nothing."""
        self._stopping = True
        while self._tasks:
            await asyncio.sleep(_LOOK_S)
        self._copies.close()
