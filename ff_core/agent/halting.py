"""One agent's part of a halt: everybody on the node stops, then the controller hears what every slot holds.

A slot changes no more once it has been reported (docs/protocol.md, section 4). So the inventory waits for the data
port's older connections to be joined, for every worker that can answer, and for the end of those that are dying.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from ff_core.agent.workers import Worker

if TYPE_CHECKING:
    from ff_core.agent.agent import Agent


class Halting:
    """epoch: the one that was announced and has no verdict yet, None while nothing is halted.

    live: rank -> version of whole, sealed live tensors, of those who have answered.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.epoch: int | None = None
        self.live: dict[int, int] = {}

    async def begin(self, epoch: int, dead: list[int]) -> None:
        """Halt every worker of the node, again if need be."""
        agent = self._agent
        self.epoch = epoch
        self.live.clear()
        agent.newcomers.no_fills()
        for worker in agent.workers.ranks():
            worker.asked, worker.halted = epoch, None
            worker.page.store("halt_epoch", epoch)
            worker.page.notify()
            worker.send("halt", epoch=epoch, dead=dead)
        await agent.port.retire_before(epoch)
        self.progress()
        asyncio.get_running_loop().call_later(agent.config.halt_timeout_s, self._overdue, epoch)

    def over(self) -> None:
        """A verdict or a new start: nothing is halted any more."""
        self.epoch = None

    def confirmed(self, worker: Worker, epoch: int, version: int, sealed: bool) -> None:
        """`worker` has stopped for `epoch`; its live tensors hold `version`, -1 if they are not whole."""
        worker.halted = epoch
        if epoch == self.epoch:
            if sealed and version >= 0:
                self.live[worker.rank] = version
            self.progress()

    def gone(self, worker: Worker) -> None:
        """The process has ended; progress() follows when that has been reported."""
        self.live.pop(worker.rank, None)

    def progress(self) -> None:
        """Send the inventory if nobody is waited for any more."""
        agent, epoch = self._agent, self.epoch
        if epoch is None or agent.port.retired_before < epoch or any(self.awaited(w) for w in agent.workers.ranks()):
            return
        reports = [[r.rank, r.node, r.kind, r.epoch, r.version, r.full] for r in agent.store.reports()]
        agent.send("inventory", epoch=epoch, arenas=reports, live=dict(self.live))

    def awaited(self, worker: Worker) -> bool:
        """Whether its slots may still change. A newcomer that was assigned after the halt has nothing to stop."""
        if worker.dying:
            return not worker.stuck
        return worker.booted and worker.asked == self.epoch and worker.halted != self.epoch

    def _overdue(self, epoch: int) -> None:
        agent = self._agent
        if self.epoch != epoch or agent.stopping:
            return
        limit = f"{agent.config.halt_timeout_s:g} s (halt_timeout_s)"
        for worker in agent.workers.ranks():
            if not self.awaited(worker):
                continue
            if worker.dying:  # held in the kernel, by a device's driver perhaps
                worker.stuck = True
                agent.store.discard(worker.rank)
                agent.say(f"rank {worker.rank} was killed but did not end within {limit}: its own copies are not used")
            else:
                agent.say(f"rank {worker.rank} did not halt within {limit}; it is killed")
                worker.process.kill_group(signal.SIGKILL)
        self.progress()
        agent.data_arrived()  # who waited for the stuck ones' device waits no more
