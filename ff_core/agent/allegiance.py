"""Which controller an agent obeys, and what it tells the next one: the agent's part of a takeover.

The rules are in docs/protocol.md, section 8. The agent keeps the controller's record and does not look into it, but for
where the job's launchers listen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Any

from ff_core.agent.state import NodeState
from ff_core.contract.address import endpoint
from ff_core.contract.terms import EPOCHS_A_TERM, TERM_BITS, can_elect

_LOOK_S = 0.1


class Allegiance:
    """Of one agent. signum: the signal with which it has asked to be drained, 0: it has not."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._number = 0
        self._record: dict[str, Any] | None = None
        self._count = 0
        self._sent_at: dict[int, float] = {}  # heartbeats that have not been answered: when they were sent
        self._heard_at = float("-inf")
        self._term = 0  # with which it has joined somebody
        self._place, self._is_own = "", False  # of the controller
        self._waits = 0  # looks since the newest answer to a heartbeat
        self.reads = True  # it is not busy with a message
        self.signum = 0

    # ---- while the controller lives ---------------------------------------------------------------------------------

    def on_record(self, number: int, content: dict[str, Any]) -> None:
        """What a successor will need."""
        self._number, self._record = number, content or None
        self._state.send("recorded", number=number)

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
        self._waits = 0
        self._heard_at = self._sent_at.get(count, self._heard_at)
        self._sent_at = {number: at for number, at in self._sent_at.items() if number > count}

    def obeys(self, place: str, own: Sequence[Any] | None) -> None:
        """The controller is at `place` (HOST:PORT) from now on. own: where the launcher of this agent listens."""
        self._place, self._waits, self.reads = place, 0, True
        self._is_own = own is not None and endpoint(own[0], own[1]) == place

    async def until_silent(self) -> None:
        """Until the controller may be left although its stream is there: others can elect another one, and it has
        answered no heartbeat for heartbeat_timeout_s. Time counts while this process runs and reads."""
        while not self._may_leave():
            await asyncio.sleep(_LOOK_S)
            self._waits += self.reads

    def _may_leave(self) -> bool:
        return not self._is_own and self.can_elect() and self.is_silent(self._place)

    def is_silent(self, place: str) -> bool:
        """The controller is at `place`, and has not answered for heartbeat_timeout_s."""
        return place == self._place and self._waits * _LOOK_S >= self._state.config.heartbeat_timeout_s

    # ---- when it is gone --------------------------------------------------------------------------------------------

    def can_elect(self) -> bool:
        """Whether the job's nodes without one are a majority."""
        return can_elect(self.places())

    def may_join(self) -> bool:
        """A loss is a failover now, and the job may go on with this node."""
        known = self._record is not None and not self._state.stopping
        return known and (self.was_heard() or self.can_elect())

    def was_heard(self) -> bool:
        """The controller, if it lived until now, cannot have given this node up for its silence."""
        return time.monotonic() - self._heard_at < self._state.config.heartbeat_timeout_s

    def places(self) -> list[tuple[int, str, int]]:
        """Where the job's launchers listen, as (node, host, port), in the order in which they are asked."""
        places = self._record["places"] if self._record is not None else {}
        return [(node, str(places[node][0]), int(places[node][1])) for node in sorted(places)]

    def report(self, silent: Collection[int] = (), term: int = 0) -> dict[str, Any] | None:
        """What a successor is told of this node; a new one for each. None: it joins nobody, because a loss is no
        failover now, or the job is over. silent: nodes that do not answer.  term: the lowest with which it may come."""
        state = self._state
        if self._record is None or state.stopping:
            return None
        newest = max(state.epoch, state.halt_epoch or 0) // EPOCHS_A_TERM
        self._term = max(self._term + 1, newest + 1, (self._number >> TERM_BITS) + 1, term)
        return {
            "term": self._term,
            "number": self._number,
            "record": self._record,
            "heard": self.was_heard(),
            "silent": [*silent],
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
