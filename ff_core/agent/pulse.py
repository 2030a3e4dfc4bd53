"""How the ranks of a node get on: with every heartbeat, and their stacks when the controller wants to know more."""

from __future__ import annotations

import asyncio
from typing import Any

from ff_core.agent.interfaces import RankProcess
from ff_core.agent.state import NodeState


class Pulse:
    """Of one node."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._seen: dict[str, tuple[int, int]] = {}  # by process: progress and activity, of the last heartbeat
        self._looking: set[asyncio.Task[None]] = set()

    def progress(self) -> dict[int, list[Any]]:
        """rank -> [progress count, activity, seconds for which its process has done nothing at all, whether it is
        stopped], of the workers that have booted."""
        found: dict[int, list[Any]] = {}
        seen: dict[str, tuple[int, int]] = {}
        for worker in self._living():
            count, activity = seen[worker.uid] = worker.page.load("progress"), worker.page.load("activity")
            still_s, stopped = worker.process.still(moved=self._seen.get(worker.uid) != (count, activity))
            found[worker.rank] = [count, activity, still_s, stopped]
        self._seen = seen
        return found

    def _living(self) -> list[RankProcess]:
        return [w for w in self._state.workers.ranks() if w.booted and not w.dying and not w.gone]

    def on_look(self, id: int, let_go: list[int]) -> None:
        """Other messages go on meanwhile: a process that does not answer is waited for."""
        task = asyncio.get_running_loop().create_task(self._look(id, set(let_go)))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self, id: int, let_go: set[int]) -> None:
        ranks = self._living()
        texts = await asyncio.gather(*(w.process.stacks(let_go=w.rank in let_go) for w in ranks))
        self._state.send("stacks", id=id, ranks={w.rank: text for w, text in zip(ranks, texts, strict=True)})
