"""A disk of the simulator: what `agent.version_files` and `contract.persisted.find` do with a real one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from ff_core.contract.job import JobSpec
from ff_core.contract.persisted import Found, Manifest, Part
from ff_core.errors import CorruptSlotError
from tests.controller.sim_memory import SimArena, SimSlot, Violation


class Disk:
    """manifests: of complete versions, oldest first.  damaged: (folder, rank) of files with a flipped bit."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, int], SimSlot] = {}
        self.manifests: list[Manifest] = []
        self.damaged: set[tuple[str, int]] = set()

    # ---- contract.persisted

    def find(self, job: JobSpec, directory: str) -> Found:
        serials = [int(folder.split("-")[1]) for folder, _ in self.files]
        return Found(list(reversed(self.manifests)), [], 1 + max(serials, default=0))

    # ---- agent.version_files

    class Copies:
        def take(self, sources: Mapping[int, Any], epoch: int, version: int) -> tuple[dict[int, Any], dict[int, str]]:
            taken, failed = {}, {}
            for rank, arena in sources.items():
                index = arena.find(epoch, version)
                try:
                    taken[rank] = copy.copy(arena.verify(index if index is not None else 0))
                    if index is None:
                        raise CorruptSlotError("it was written anew")
                except CorruptSlotError as error:
                    taken.pop(rank, None)
                    failed[rank] = str(error)
            return taken, failed

        def close(self) -> None:
            pass

    def write(self, directory: str, folder: str, rank: int, slot: SimSlot, go_on: Callable[[], None]) -> Part:
        go_on()
        if any(manifest.id == folder for manifest in self.manifests):
            raise Violation(f"a file of {folder}, which is complete, is written anew")
        self.files[folder, rank] = slot
        return Part(f"rank{rank}", 1)

    def seal(self, directory: str, manifest: Mapping[str, Any], keep: int, go_on: Callable[[], None]) -> None:
        made = Manifest.from_wire(manifest)
        slots = [self.files[made.id, rank] for rank in range(made.world_size)]
        if {(slot.epoch, slot.version) for slot in slots} != {(made.epoch, made.version)}:
            raise Violation(f"{made.id} is of several versions: {slots}")
        if len({slot.unique for slot in slots}) > 1 or any(slot.scalars != slot.unique for slot in slots):
            raise Violation(f"{made.id} is of several lineages: {slots}")
        self.manifests = [*self.manifests, made][-keep:]

    def load(
        self, directory: str, folder: str, parts: Mapping[int, Any], targets: Mapping[int, SimArena], epoch: int
    ) -> dict[int, str]:
        failed = {}
        for rank in parts:
            slot = self.files[folder, rank]
            if (folder, rank) in self.damaged:
                failed[rank] = "damaged"
                continue
            target = targets[rank]
            target.has_journal = True
            target.begin(0, epoch, slot.version)
            assert slot.unique is not None and slot.scalars is not None
            target.finish(0, slot.unique, slot.repl, slot.scalars)
        return failed
