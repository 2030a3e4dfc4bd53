"""Which controller an agent obeys, and what it tells the next one: the agent's part of a takeover.

The rules are in docs/protocol.md, section 8. The agent keeps the controller's record and does not look into it, but for
where the job's launchers listen.
"""

from __future__ import annotations

import time
from typing import Any

from ff_core.agent.state import NodeState


class Allegiance:
    """Of one agent. signum: the signal with which it has asked to be drained, 0: it has not."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._number = 0
        self._record: dict[str, Any] | None = None
        self._count = 0
        self._sent_at: dict[int, float] = {}  # heartbeats that have not been answered: when they were sent
        self._heard_at = float("-inf")
        self._terms = 0  # how often it has lost a controller
        self.signum = 0

    # ---- while the controller lives ---------------------------------------------------------------------------------

    def on_record(self, number: int, content: dict[str, Any]) -> None:
        """What a successor will need."""
        self._number, self._record = number, content

    def forget_record(self) -> None:
        """A death is no failover any more."""
        self._record = None

    def beats(self) -> int:
        """The number of the heartbeat that is about to be sent."""
        self._count += 1
        self._sent_at[self._count] = time.monotonic()
        return self._count

    def on_heard(self, count: int) -> None:
        """The controller has heard heartbeat `count`, and all before it."""
        self._heard_at = self._sent_at.get(count, self._heard_at)
        self._sent_at = {number: at for number, at in self._sent_at.items() if number > count}

    # ---- when it is gone --------------------------------------------------------------------------------------------

    def was_heard(self) -> bool:
        """The controller, if it lived until now, cannot have given this node up for its silence."""
        return time.monotonic() - self._heard_at < self._state.config.heartbeat_timeout_s

    def places(self) -> list[tuple[int, str, int]]:
        """Where the job's launchers listen, as (node, host, port), in the order in which they are asked."""
        places = self._record["places"] if self._record is not None else {}
        return [(node, str(places[node][0]), int(places[node][1])) for node in sorted(places)]

    def report(self) -> dict[str, Any] | None:
        """What a successor is told of this node. None: it joins nobody, because a loss is no failover now, or the job
        is over."""
        state = self._state
        if self._record is None or state.stopping:
            return None
        self._terms += 1
        return {
            "term": self._terms,
            "number": self._number,
            "record": self._record,
            "epoch": state.epoch,
            "halt_epoch": -1 if state.halt_epoch is None else state.halt_epoch,
            "verdict": [*state.verdict],
            "ranks": [
                [worker.rank, worker.uid, worker.since, worker.restored]
                for worker in state.workers.ranks()
                if not worker.dying and not worker.gone
            ],
            "spares": {worker.uid: worker.is_ready for worker in state.workers.spares() if not worker.gone},
        }
