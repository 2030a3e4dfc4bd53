"""The simulated controller's end, and the way to the next one: agents that look for it, deputies that they join.

The product's own `Allegiance`, `Election` and `Takeover` decide; here are the connections. A launcher and its agent end
together, so a node is proven dead when its host is.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_core.contract.job import LOST_CODE
from ff_core.contract.messages import AGENT_TO_CONTROLLER, Message, make, pack, unpack
from ff_core.controller.controller import Controller
from ff_core.controller.election import Election, Joined
from ff_core.controller.membership import Node
from ff_core.controller.succession import PROOF_S
from ff_core.controller.takeover import Takeover
from tests.controller.sim_disk import Disk
from tests.controller.sim_memory import Violation

if TYPE_CHECKING:
    from tests.controller.sim_agent import AgentHost


class Takeovers:
    """The part of `World` for that. headless: the controller is dead, and nobody has taken over."""

    controller: Controller
    random: random.Random
    hosts: dict[int, AgentHost]
    disk: Disk
    steps: int
    trace: deque[str]
    lost: list[int]
    losses: list[str]
    old_messages: list[tuple[int, Message]]
    result: tuple[int, str] | None
    now: Callable[[], float]
    described: Callable[[int], Node]
    _lost: Callable[[str], None]

    def __init__(self) -> None:
        super().__init__()
        self.headless = self.tears = False
        self.forced = ""
        self.takeovers = self.outvoted = 0
        self.silent: set[int] = set()  # nodes that nobody hears, and that nobody can prove dead
        self._former: Controller | None = None  # it is silent, and may live
        self._terms: dict[int, int] = {}  # with which a node was told to ask again
        self.laggards = 0  # agents that had missed the newest verdict when another controller took over
        self.left_behind: set[int] = set()  # nodes of the controller before that its successor does not know
        self._elections: dict[int, Election] = {}
        self._goes_on_here: set[int] = set()  # nodes with a record, when the controller died

    def controller_falls_silent(self) -> None:
        """With its node. Nobody can tell whether it lives."""
        self._former = self.controller
        self.silent.add(self.controller.state.home)
        self.controller_dies()

    def controller_dies(self) -> None:
        """With its node. What it sent last has arrived here, and not there."""
        home = self.hosts[self.controller.state.home]
        self._lost(f"node {home.node}")
        home.die()
        self.headless = True
        self.lost.clear()
        self._elections.clear()
        for node in self.left_behind:  # of its controller's death it has heard before another one died
            self._is_refused(self.hosts[node])
        for host in self.hosts.values():
            host.deputy = None
            for _ in range(self.random.randrange(len(host.from_controller) + 1)):
                host.from_controller.pop()
        self._goes_on_here = {number for number, host in self.hosts.items() if host.alive and self._goes_on(host)}

    def _goes_on(self, host: AgentHost) -> bool:
        """Whether the agent has a record, and will have it when it has read all."""
        unread = {host.handled, *(message["t"] for message in host.from_controller)}
        if any(message.get("content") == {} for message in host.from_controller):
            return False
        ends = unread & {"may_leave", "start", "stop"}
        return host.was_heard and not ends and bool(host.agent.allegiance.places()) and not host.agent.state.stopping

    def look_for_another(self, host: AgentHost) -> bool:
        """The agent of `host` has read all that its controller said: it goes through the job's launchers."""
        if not host.alive or host.from_controller or host.current is not None:
            return False
        if host.deputy is not None and self.hosts[host.deputy].alive:
            return False
        allegiance = host.agent.allegiance
        if not (host.was_heard and self._former is None) and not allegiance.can_elect():
            return self._end(host, "no record" if host.was_heard and not allegiance.places() else "no majority")
        report = allegiance.report(self.silent, self._terms.pop(host.node, 0))
        if report is None:
            return self._end(host, "no record")
        report["heard"] = host.was_heard
        host.to_controller.clear()
        host.deputy = next(node for node, _, _ in allegiance.places() if self.hosts[node].alive)
        hello = {"node": host.node, "host_id": "", "hostname": "", "data_host": "", "data_port": 0, "free_bytes": 0}
        message = make(AGENT_TO_CONTROLLER, "hello", proof=b"", nonce=b"", pid=0, joins=report, **hello)
        said: Any = unpack(AGENT_TO_CONTROLLER, pack(message))["joins"]
        self.trace.append(f"{self.steps}: {host.node} joins {host.deputy}: {said}")
        election = self._elections.setdefault(host.deputy, Election())
        if election.join(Joined.of(self.described(host.node), said)):
            host.deputy = None
            self._terms[host.node] = election.term
        return True

    def is_refused(self, host: AgentHost) -> bool:
        """An agent that was left behind has read all that its controller said, and joins who lives."""
        if not host.alive or host.from_controller or host.current is not None:
            return False
        return self._is_refused(host)

    def _is_refused(self, host: AgentHost) -> bool:
        if not host.alive:
            return False
        self.trace.append(f"{self.steps}: {host.node} is refused: the job goes on without it")
        host.die()  # no loss: whatever it holds others hold, too
        return True

    def _end(self, host: AgentHost, why: str) -> bool:
        self.trace.append(f"{self.steps}: {host.node} ends: {why}")
        if why == "no record" and host.node in self._goes_on_here:
            raise Violation(f"node {host.node} had a record, and does not go on")
        self._lost(f"node {host.node}")  # by itself: the loop may have ended for it, and not for others yet
        host.die()
        return True

    def elect(self) -> bool:
        """Some deputy looks again; or nobody is left."""
        if not any(host.alive for host in self.hosts.values()):
            self.result = (1, "the controller is gone")
            return True
        for node, election in self._elections.items():
            if not self.hosts[node].alive:
                continue
            for other in [*election.joined]:
                if not self.hosts[other].alive:
                    election.leave(other)
            for other in election.outdated():
                election.leave(other)
                self.hosts[other].deputy = None
                self._terms[other] = election.term
            missing = {other for other in election.missing() if not self.hosts[other].alive}
            election.dead |= missing - self.silent
            if node in election.joined and (election.is_complete() or self._is_enough(election)):
                self._take_over(node, election)
                return True
        return False

    def _is_enough(self, election: Election) -> bool:
        """A majority waits for others, or does not."""
        return election.has_majority() and (election.missing().keys() <= self.silent or self.random.random() < 0.02)

    def nobody_takes_over(self) -> None:
        """Time is over: who has joined somebody ends."""
        waiting = [host for host in self.hosts.values() if host.alive and host.deputy is not None]
        if not waiting:
            raise Violation("nobody takes over, and nobody ends")
        for host in waiting:
            self._end(host, "no majority")

    def _is_elected(self, election: Election) -> None:
        """All who live have come, or more than half of all."""
        counting = election.record.places.keys()
        absent = counting - election.joined.keys()
        absent = {other for other in absent if self.hosts[other].alive or other in self.silent}
        if absent and 2 * len(counting & election.joined.keys()) <= len(counting):
            raise Violation(f"a controller of {sorted(election.joined)}, without {absent}")

    def _is_alone(self, election: Election) -> None:
        """The controller that is silent may live, and hear all who have not left it."""
        former, self._former = self._former, None
        if former is not None:
            self.outvoted += 1
            hears = {node for node in former.state.members.live_nodes() if node not in election.joined}
            if former.state.quorum.holds(hears):
                raise Violation(f"two controllers: {former.state.home} hears {hears}")

    def prove(self) -> bool:
        """A controller that may not decide looks for proof that lost nodes are dead, and ends if there is none."""
        succession = self.controller.succession
        unproven = succession.unproven()
        dead = [node for node in unproven if not self.hosts[node].alive and self.hosts[node].was_heard]
        dead = [node for node in dead if node not in self.silent]
        if dead:
            succession.proven_dead(dead)
        elif unproven:
            succession.suspended(self.now())
            succession.suspended(self.now() + PROOF_S + 1.0)
        return bool(unproven)

    def fenced(self, reason: str) -> None:
        """See Outbox."""
        self.trace.append(f"{self.steps}: FENCED: {reason}")
        if self.controller.state.quorum.holds(self.controller.state.members.live_nodes()):
            raise Violation("it ends, although nobody else can be elected")
        self.result = (LOST_CODE, reason)

    def _take_over(self, node: int, election: Election) -> None:
        complete = election.is_complete()
        self._is_elected(election)
        for other in election.outsiders():
            election.leave(other)
            self._end(self.hosts[other], "given up")
        self._is_alone(election)
        world: Any = self
        newest = max(one.verdict[1] for one in election.joined.values())
        self.laggards += sum(0 <= one.verdict[1] < newest for one in election.joined.values())
        for other, host in self.hosts.items():
            if other not in election.joined:
                host.to_controller.clear()
                if host.alive:
                    self.left_behind.add(other)
                    if other in election.missing():
                        self._lost(f"node {other}")  # it was late
        self.headless = False
        self.takeovers += 1
        self.trace.append(f"{self.steps}: {node} TAKES OVER")
        if node != min(election.joined) and complete:
            raise Violation(f"node {node} takes over, and {sorted(election.joined)} live")
        joined, record = election.joined, election.record
        takeover = Takeover(world, self.disk.find, joined, record, self.now(), node, election.dead)
        self.controller = takeover.controller
        takeover.begin()
