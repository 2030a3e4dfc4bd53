"""Injected faults (`--inject`), the agent's part: a slot is damaged here, and a worker hears when it may go on."""

from __future__ import annotations

from ff_core.agent.state import NodeState


class Injections:
    """Of one agent."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def on_inject_ack(self, id: int, rank: int) -> None:
        worker = self._state.workers.of_rank(rank)
        if worker is not None:
            worker.send("inject_ack", id=id, rank=rank)

    def on_corrupt(self, rank: int, kind: str, id: int, to: int) -> None:
        arena = self._state.store.find(kind, rank)
        if arena is not None:
            complete = [(info.version, index) for index, info in enumerate(arena.slot_infos()) if info.complete]
            if complete:
                arena.corrupt(max(complete)[1], 0)
        self._state.send("corrupted", id=id, rank=rank, to=to)
