"""Processes of one agent that wait for data: a role needs the journal, a restore needs the slot."""

from __future__ import annotations

from typing import Any

from ff_core.agent.interfaces import RankProcess
from ff_core.agent.state import NodeState


class Newcomers:
    """Gives a process its role once its rank's init journal is in the arena, and tells it when its slot has been
    filled."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._roles: dict[int, tuple[RankProcess, dict[str, Any]]] = {}
        self._after: dict[int, list[RankProcess]] = {}
        self._fills: dict[int, tuple[int, int]] = {}

    def assigned(self, rank: int, worker: RankProcess, *, epoch: int, injections: list[Any], after_exit: bool) -> None:
        """`worker` will play `rank`, from `epoch` on.

        after_exit: it begins when those who played the rank are gone and have given their device's memory back, or when
        `worker` says that it does without that memory."""
        self._roles[rank] = worker, {"epoch": epoch, "newcomer": True, "injections": injections}
        playing = [other for other in self._state.workers.ranks() if other.rank == rank and other is not worker]
        self._after[rank] = playing if after_exit else []

    def has_room(self, worker: RankProcess) -> None:
        """Its device has room for `worker` before the memory of those who played its rank is back."""
        if worker.rank in self._roles:
            self._after[worker.rank] = []
        self.look()

    def filling(self, rank: int, epoch: int, version: int) -> None:
        """Slot (epoch, version) of `rank` is being streamed in from elsewhere."""
        self._fills[rank] = epoch, version

    def no_fills(self) -> None:
        """A halt: what was being streamed in will not be."""
        self._fills.clear()

    def forget(self, worker: RankProcess) -> None:
        """The process has ended."""
        self._roles = {rank: entry for rank, entry in self._roles.items() if entry[0] is not worker}

    def clear(self) -> None:
        self._roles.clear()
        self._after.clear()
        self._fills.clear()

    def look(self) -> None:
        """Something arrived, or a role became possible: hand out what is complete now."""
        for rank, (worker, details) in list(self._roles.items()):
            arena = self._state.store.own.get(rank)
            if all(other.gone or other.stuck for other in self._after[rank]) and arena is not None and arena.journal():
                del self._roles[rank]
                self._state.workers.give_role(worker, rank, arena=arena, **details)
        for rank, (epoch, version) in list(self._fills.items()):
            arena, filled = self._state.store.own.get(rank), self._state.workers.of_rank(rank)
            if arena is None or filled is None or epoch != self._state.epoch or arena.find(epoch, version) is None:
                continue
            del self._fills[rank]
            filled.send("slot_ready", epoch=epoch)
