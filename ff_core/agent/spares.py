"""The spares of one agent: processes that have imported what a live rank has imported, and wait for a rank."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ff_core.agent.interfaces import RankProcess
from ff_core.agent.state import NodeState

#: The successor of a spare that was taken waits so long: its imports must not compete with the iteration that is being
#: done again.
_REFILL_DELAY_S = 3.0


class SparePool:
    """Keeps as many processes warming or ready as the job wants, once a live rank has said what to import.

    start(uid, -1) starts a process and tells the controller.
    """

    def __init__(self, state: NodeState, start: Callable[[str, int], Awaitable[RankProcess]]) -> None:
        self._state, self._start = state, start
        self._preload: dict[str, Any] | None = None
        self._numbered = 0
        self._starting: set[asyncio.Task[None]] = set()
        self._not_before = 0.0

    def preload(self, modules: list[str], calls: list[Any]) -> None:
        """What spares import and call before they are ready."""
        self._preload = {"modules": modules, "calls": calls}
        self.refill()

    def refill(self) -> None:
        """Start what is missing, unless a spare has just been taken: then a little later."""
        loop = asyncio.get_running_loop()
        if self._preload is None or self._state.stopping or loop.time() < self._not_before:
            return
        for _ in range(self._state.job.spares - len(self._state.workers.spares()) - len(self._starting)):
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
        worker.send("preload", **(self._preload or {}))
