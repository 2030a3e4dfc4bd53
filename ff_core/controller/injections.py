"""Faults that the user asked for (`--inject`), on their way: each happens once per job, and a damaged slot is damaged
by the agent that has it."""

from __future__ import annotations

from ff_core.contract.inject import parse
from ff_core.controller.state import JobState


class Injections:
    """Of one start of the script."""

    def __init__(self, state: JobState) -> None:
        self._state = state

    def on_inject_fired(self, node: int, rank: int, id: int, at: float, action: str) -> None:
        """A fault is about to be injected: note it, so that it fires once per job, then let it happen."""
        state = self._state
        state.fired.add(id)
        state.out.emit("injection", rank=rank, id=id, action=action, at=at)
        if action != "corrupt-slot":
            state.kill_times[rank] = at
            state.out.send(node, "inject_ack", id=id, rank=rank)
            return
        text = state.job.injections[id]
        kind = parse(text).slot
        where = state.members.ranks[rank].holders[:1] if kind == "replica" else [node]
        if where:
            state.out.send(where[0], "corrupt", rank=rank, kind=kind, id=id, to=node)
        else:
            state.out.say(f"--inject {text!r}: rank {rank} has no replica to corrupt")
            state.out.send(node, "inject_ack", id=id, rank=rank)

    def on_corrupted(self, node: int, rank: int, id: int, to: int) -> None:
        """The agent of a damaged slot is through: the worker on node `to` may go on."""
        self._state.out.send(to, "inject_ack", id=id, rank=rank)
