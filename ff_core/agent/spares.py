"""The spares of one agent: processes that have imported what a live rank has imported, and wait for a rank."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ff_core.agent.interfaces import RankProcess
from ff_core.agent.state import NodeState
from ff_core.contract.env import EVERYTHING

#: The successor of a spare that was taken waits so long: its imports must not compete with the iteration that is being
#: done again.
_REFILL_DELAY_S = 3.0
#: Attempts at importing ahead in which something was found that must wait. One finds a module and those that import
#: it; a second one, modules that import it as well.
_MOST_ROUNDS = 8


class SparePool:
    """Keeps as many processes warming or ready as the job wants (on a standby: as a node has ranks), once a live rank
    has said what to import.

    start(uid, -1) starts a process and tells the controller.
    """

    def __init__(self, state: NodeState, start: Callable[[str, int], Awaitable[RankProcess]]) -> None:
        self._state, self._start = state, start
        self._preload: dict[str, Any] | None = None
        self._without: dict[str, str] = {}
        self._rounds = 0
        self._numbered = 0
        self._starting: set[asyncio.Task[None]] = set()
        self._not_before = 0.0

    def preload(self, what: dict[str, Any]) -> None:
        """What spares import and call before they are ready: the fields of the message "preload"."""
        self._preload = {**what, "argv": list(self._state.job.entrypoint)}
        self.refill()

    def unfit(self, spare: RankProcess, reasons: dict[str, str]) -> None:
        """`spare` has imported modules that must wait for the rank, each with its reason. It has started afresh."""
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            reasons = {EVERYTHING: "every attempt found other modules that must wait"}
        new = {name: reason for name, reason in reasons.items() if name not in self._without}
        self._without |= new
        if EVERYTHING in new:
            self._state.say(f"spares import nothing ahead, so failovers take longer: {new[EVERYTHING]}")
        elif new:
            name, reason = next(iter(new.items()))
            others = f" ({len(new) - 1} more wait because of such modules)" if len(new) > 1 else ""
            self._state.say(f"spares leave {name} to the rank: it {reason}{others}")
        if spare.rank < 0:
            self._send(spare)

    def refill(self) -> None:
        """Start what is missing, unless a spare has just been taken: then a little later."""
        loop = asyncio.get_running_loop()
        if self._preload is None or self._state.stopping or loop.time() < self._not_before:
            return
        wanted = self._state.config.spares
        if self._state.standby:  # as many as a lost node had ranks
            wanted = max(wanted, self._state.job.nproc_per_node)
        for _ in range(wanted - len(self._state.workers.spares()) - len(self._starting)):
            self._numbered += 1
            task = loop.create_task(self._warm(f"n{self._state.node}-spare{self._numbered}"))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    def taken(self) -> None:
        """A spare has become a rank."""
        loop = asyncio.get_running_loop()
        self._not_before = loop.time() + _REFILL_DELAY_S
        loop.call_later(_REFILL_DELAY_S + 0.01, self.refill)

    async def _warm(self, uid: str) -> None:
        worker = await self._start(uid, -1)
        self._send(worker)

    def _send(self, spare: RankProcess) -> None:
        if self._preload is not None:
            spare.send("preload", **self._preload, without=list(self._without))
