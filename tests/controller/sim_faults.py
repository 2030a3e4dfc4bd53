"""The faults of a simulated job: what is killed, lost, frozen or damaged, drawn from the world's seed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from ff_core.controller.controller import Controller
from ff_core.copy.arena import SlotState
from tests.controller.sim_agent import AgentHost, SimProcess
from tests.controller.sim_checks import Options


class Faults:
    """The part of `World` that lets faults happen."""

    random: random.Random
    options: Options
    controller: Controller
    hosts: dict[int, AgentHost]
    steps: int
    trace: deque[str]
    faults_left: int
    next_fault: int | None
    losses: list[str]
    kills: dict[int, int]
    lost: list[int]  # nodes whose end the controller has not been told of
    tears: bool
    forced: str  # what the next fault is to be
    headless: bool  # the controller is dead
    controller_dies: Callable[[], None]
    controller_falls_silent: Callable[[], None]
    asked: int  # drains
    drained: Callable[[str], None]
    coming: list[int]  # steps at which another node comes

    def _fault(self) -> None:
        """One fault at a random place. What is not possible now simply does not happen."""
        self.faults_left -= not self.forced
        self.next_fault = None
        if self.faults_left:
            self.next_fault = self.steps + self.random.choice((0, 1, 5, 20, 60, 150, 400, 1000))
        kind, self.forced = self.forced or self.random.choice(self.options.kinds), ""
        if self.headless and kind in ("partition", "drain"):
            kind = "node"  # there is no controller to be told
        hosts = [host for host in self.hosts.values() if host.alive]
        processes = [p for host in hosts for p in host.processes if p.code is None and p.rank >= 0]
        if kind == "node" and len(hosts) > 1:
            host = self.random.choice(hosts)
            self._lost(f"node {host.node}")
            host.die()
            self._returns()
            for _ in range(self.random.randrange(len(host.to_controller) + 1)):
                host.to_controller.pop()
            self.lost.append(host.node)
        elif kind == "controller" and not self.headless and len(hosts) > 1:
            self.controller_dies()
        elif kind == "silence" and not self.headless and len(hosts) > 1:
            self.controller_falls_silent()
        elif kind == "partition" and len(hosts) > 1:
            host = self.random.choice(hosts)
            self._lost(f"node {host.node}")
            host.was_heard = False
            self.controller.node_down(host.node, "no heartbeat")
            self._returns()
        elif kind in ("process", "torn") and processes:
            self.tears = kind == "torn"  # the controller dies while it tells the verdict
            process = self.random.choice(processes)
            self.kills[process.rank] = self.kills.get(process.rank, 0) + 1
            self._lost(f"process {process.uid} on node {process.host.node}")
            process.exit(-9)
        elif kind == "undead" and [p for p in processes if p.booted]:
            process = self.random.choice([p for p in processes if p.booted])
            self.kills[process.rank] = self.kills.get(process.rank, 0) + 1
            self._lost(f"process {process.uid} on node {process.host.node}, undead")
            process.exit(-9)
            process.undead = True
        elif kind == "spare":
            spares = [p for host in hosts for p in host.processes if p.code is None and p.rank < 0]
            if spares:
                self.random.choice(spares).exit(-9)
        elif kind == "drain":
            host = self.random.choice(hosts)
            self.trace.append(f"{self.steps}: DRAIN {host.node}")
            self.asked += 1
            self.controller.drain(host.node, self.drained)
        elif kind == "slot":
            arenas = [a for host in hosts for a in host.agent.store._all()]
            slots = [s for a in arenas for s in a.slots if s.state is SlotState.COMPLETE]  # type: ignore[attr-defined]
            if slots:
                self._lost(f"slot {len(self.losses)}")
                self.random.choice(slots).corrupt = True
        elif kind == "frozen" and len(playing := [p for p in processes if self._plays(p)]) > 1:
            for process, end in zip(self.random.sample(playing, 2), (False, True), strict=True):
                self._lost(
                    f"process {process.uid} on node {process.host.node}"
                )  # one stops answering, another one dies: that is when the first is missed
                self.kills[process.rank] = self.kills.get(process.rank, 0) + 1
                process.frozen = not end
                if end:
                    process.exit(-9)

    def _plays(self, process: SimProcess) -> bool:
        """Not of a start before: the job does not miss it, and would wait for a frozen one without end."""
        rank = self.controller.state.members.ranks.get(process.rank)
        return rank is not None and rank.uid == process.uid

    def _returns(self) -> None:
        if self.options.returns:
            self.coming.append(self.steps + self.random.randrange(600))

    def _lost(self, what: str) -> None:
        self.losses.append(what)
        self.trace.append(f"{self.steps}: LOST {what}")
