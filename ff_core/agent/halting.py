"""One agent's part of a halt: everybody on the node stops, then the controller hears what every slot holds.

A slot changes no more once it has been reported (docs/protocol.md, section 4). So the inventory waits for the data
port's older connections to be joined, for every worker that can answer, and for the end of those that are dying.
"""

from __future__ import annotations

import asyncio
import signal

from ff_core.agent.interfaces import RankProcess
from ff_core.agent.newcomers import Newcomers
from ff_core.agent.state import NodeState


class Halting:
    """live: rank -> version of whole, sealed live tensors, of those who have answered."""

    def __init__(self, state: NodeState, newcomers: Newcomers) -> None:
        self._state, self._newcomers = state, newcomers
        self.live: dict[int, int] = {}
        self._settled: tuple[int, int, int] | None = None

    async def begin(self, epoch: int, dead: list[int], settled: list[int] | None = None) -> None:
        """Halt every worker of the node, again if need be. settled: old epoch, epoch and version of the newest verdict
        before, from a controller that has taken over: perhaps it has not come here."""
        state = self._state
        if settled is not None:
            self._settled = settled[0], settled[1], settled[2]
        state.halt_epoch = epoch
        self.live.clear()
        self._newcomers.no_fills()
        for worker in state.workers.ranks():
            worker.asked, worker.halted = epoch, None
            worker.page.store("halt_epoch", epoch)
            worker.page.notify()
            worker.send("halt", epoch=epoch, dead=dead)
        await state.port.retire_before(epoch)
        self.progress()
        asyncio.get_running_loop().call_later(state.config.halt_timeout_s, self._overdue, epoch)

    def confirmed(self, worker: RankProcess, epoch: int, version: int, sealed: bool) -> None:
        """`worker` has stopped for `epoch`; its live tensors hold `version`, -1 if they are not whole."""
        worker.halted = epoch
        if epoch == self._state.halt_epoch:
            if sealed and version >= 0:
                self.live[worker.rank] = version
            self.progress()

    def gone(self, worker: RankProcess) -> None:
        """The process has ended; progress() follows when that has been reported."""
        self.live.pop(worker.rank, None)

    def progress(self) -> None:
        """Send the inventory if nobody is waited for any more."""
        state, epoch = self._state, self._state.halt_epoch
        if epoch is None or state.port.retired_before < epoch or self._any_awaited():
            return
        self._settle()
        reports = [[r.rank, r.node, r.kind, r.epoch, r.version, r.full] for r in state.store.reports()]
        state.send("inventory", epoch=epoch, arenas=reports, live=dict(self.live))

    def _settle(self) -> None:
        """What a verdict that has not come here would have done to the slots. Nobody writes to them now."""
        settled, self._settled = self._settled, None
        if settled is not None and settled[1] > self._state.epoch:
            self._state.carry_out(*settled)

    def _any_awaited(self) -> bool:
        return any(self.awaited(worker) for worker in self._state.workers.ranks())

    def awaited(self, worker: RankProcess) -> bool:
        """Whether its slots may still change. A newcomer that was assigned after the halt has nothing to stop."""
        if worker.dying:
            return not worker.stuck
        epoch = self._state.halt_epoch
        return worker.booted and worker.asked == epoch and worker.halted != epoch

    def _overdue(self, epoch: int) -> None:
        state = self._state
        if state.halt_epoch != epoch or state.stopping:
            return
        limit = f"{state.config.halt_timeout_s:g} s (halt_timeout_s)"
        for worker in state.workers.ranks():
            if not self.awaited(worker):
                continue
            if worker.dying:  # held in the kernel, by a device's driver perhaps
                worker.stuck = True
                state.store.discard(worker.rank)
                state.say(f"rank {worker.rank} was killed but did not end within {limit}: its own copies are not used")
            else:
                state.say(f"rank {worker.rank} did not halt within {limit}; it is killed")
                worker.process.kill_group(signal.SIGKILL)
        self.progress()
        self._newcomers.look()  # who waited for the stuck ones' device waits no more
