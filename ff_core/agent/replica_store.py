"""The arenas an agent owns: memory files that survive the death of the workers that use them.

`own[rank]`: slots of a rank that runs here, shared with its worker. `replicas[rank]`: copies of ranks that run
elsewhere, written by the receiver. An arena that placement no longer wants is *retired*, not freed, until the new
epoch's first W shows that its content exists elsewhere again (docs/protocol.md, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping

from ff_core.contract.slot_report import SlotReport
from ff_core.copy.arena import Arena, ArenaLayout

Layouts = Mapping[int, Mapping[str, int]]
ArenaKey = tuple[str, int]  # "own" or "replica", rank


class ReplicaStore:
    """All arenas of one agent.

    Not thread-safe: used from the agent's event loop, with older receivers retired where noted.
    """

    def __init__(self, node: int) -> None:
        self.node = node
        self.own: dict[int, Arena] = {}
        self.replicas: dict[int, Arena] = {}
        self._retired: list[tuple[str, int, Arena]] = []
        self._discarded: list[Arena] = []

    def missing(self, own: Layouts, replicas: Layouts) -> dict[ArenaKey, Mapping[str, int]]:
        """Layouts of the arenas that `allocate` would have to create."""
        retired = {entry[:2] for entry in self._retired}
        return {
            (kind, rank): fields
            for wanted, have, kind in ((own, self.own, "own"), (replicas, self.replicas, "replica"))
            for rank, fields in wanted.items()
            if rank not in have and (kind, rank) not in retired
        }

    def allocate(self, own: Layouts, replicas: Layouts, made: dict[ArenaKey, Arena] | None = None) -> None:
        """Make exactly these arenas exist; keep those that do, retire those that are no longer wanted. `made`: from
        `create_arenas`, for what is missing.

        Raises OSError or MemoryError naming the bytes needed when memory cannot be had; nothing is lost then.
        """
        made = made or {}
        for wanted, have, kind in ((own, self.own, "own"), (replicas, self.replicas, "replica")):
            for rank in [rank for rank in have if rank not in wanted]:
                self._retired.append((kind, rank, have.pop(rank)))
            for rank, fields in wanted.items():
                if rank in have:
                    continue
                returned = next((entry for entry in self._retired if entry[:2] == (kind, rank)), None)
                if returned is not None:
                    self._retired.remove(returned)
                    have[rank] = returned[2]
                elif (kind, rank) in made:
                    have[rank] = made[kind, rank]
                else:
                    have[rank] = _create(kind, rank, fields)

    def free_retired(self) -> None:
        """The new epoch has its first W: what was retired is not needed any more."""
        for entry in [entry for entry in self._retired if not entry[2].in_use]:
            entry[2].close()
            self._retired.remove(entry)
        for arena in [arena for arena in self._discarded if not arena.in_use]:
            arena.close()
            self._discarded.remove(arena)

    def discard(self, rank: int) -> None:
        """The own arena of `rank` counts no more: somebody may still be writing to it. `allocate` makes another."""
        arena = self.own.pop(rank, None)
        if arena is not None:
            self._discarded.append(arena)

    def clear(self) -> None:
        """Free everything (the script starts over, or the job ends)."""
        self.free_retired()
        for arenas in (self.own, self.replicas):
            for arena in arenas.values():
                arena.close()
            arenas.clear()

    def reports(self) -> list[SlotReport]:
        """Complete slots. Nobody writes: receivers of older epochs are retired, the ranks here are halted or gone."""
        found = []
        sources = [("own", rank, arena) for rank, arena in self.own.items()]
        sources += [("replica", rank, arena) for rank, arena in self.replicas.items()]
        sources += self._retired
        for kind, rank, arena in sources:
            for info in arena.slot_infos():
                if info.complete:
                    found.append(SlotReport(rank, self.node, kind, info.epoch, info.version, info.full))  # type: ignore[arg-type]
        return found

    def restamp(self, version: int, old_epoch: int, new_epoch: int) -> None:
        """Carry out a verdict: versions above `version` never happened, the others now belong to the new epoch.

        Older complete versions stay: until the new epoch commits they are what a further death would go back to.
        """
        for arena in self._all():
            for index, info in enumerate(arena.slot_infos()):
                if not info.complete or info.epoch != old_epoch or info.version > version:
                    arena.empty(index)
                else:
                    arena.restamp(index, new_epoch)

    def find(self, kind: str, rank: int) -> Arena | None:
        """The arena of that kind for `rank`, retired ones included."""
        arenas = self.own if kind == "own" else self.replicas
        if rank in arenas:
            return arenas[rank]
        return next((arena for k, r, arena in self._retired if (k, r) == (kind, rank)), None)

    def _all(self) -> list[Arena]:
        return [*self.own.values(), *self.replicas.values(), *(arena for _, _, arena in self._retired)]


def create_arenas(missing: Mapping[ArenaKey, Mapping[str, int]]) -> dict[ArenaKey, Arena]:
    """New arenas of these layouts. Takes as long as zeroing their memory: for a thread, not the event loop.

    Raises OSError or MemoryError naming the bytes needed; then none is left.
    """
    made: dict[ArenaKey, Arena] = {}
    try:
        for (kind, rank), fields in missing.items():
            made[kind, rank] = _create(kind, rank, fields)
    except BaseException:
        for arena in made.values():
            arena.close()
        raise
    return made


def _create(kind: str, rank: int, fields: Mapping[str, int]) -> Arena:
    return Arena.create(ArenaLayout(**fields), name=f"ff-{kind}-{rank}")
