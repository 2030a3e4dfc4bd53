"""Several controllers of one job at once, over a network that is cut anywhere, between nodes that suspect each other at
any moment: who decides? Without memory or processes, which `simulation.py` has.

The product's controllers, elections and allegiances; agents answer at once that all is there. `Cuts(seed, nodes).run()`
raises `Violation` when two controllers could decide, or when one decides after another has taken over.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from ff_core.contract.messages import AGENT_TO_CONTROLLER, make, pack, unpack
from ff_core.contract.persisted import Found
from ff_core.contract.terms import can_elect
from ff_core.controller.election import Election, Joined
from ff_core.controller.membership import Node
from ff_core.controller.succession import PROOF_S
from ff_core.controller.takeover import Takeover
from tests.controller.harness import Recorder, running
from tests.controller.sim_members import Charge, Member
from tests.controller.sim_memory import Violation

DECISIONS = frozenset(("verdict", "w", "may_leave"))


class Cuts:
    """One job. taken: how many controllers have taken over, of them voted: from a silent one.  suspended: how often a
    controller was."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.random = random.Random(seed)
        self.cut: set[tuple[int, int]] = set()  # from, to
        self.trace: list[str] = []
        self.taken = self.voted = self.suspended = 0
        self._after: dict[int, list[str]] = {}  # controller -> what it decided after another one had taken over
        job = running(nodes, 1)
        first = Charge(0, 0, job.out, job.controller)
        self.charges, self.ranks = [first], nodes
        for number, node in job.state.members.nodes.items():
            node.deputy = ("host", number)
        self.members = [Member(number, first) for number in range(nodes)]
        for number, rank in job.state.members.ranks.items():
            self.members[rank.node].plays(number, rank.uid, 0)
        job.controller.succession.look(nodes=True)
        self._collect(first)

    # ---- one thing after another ------------------------------------------------------------------------------------

    def run(self) -> Cuts:
        for _ in range(300 * len(self.members)):
            draw = self.random.random()
            if draw < 0.006:
                self._tear()
            elif draw < 0.012:
                self.cut.clear()
            elif draw < 0.014:
                self._kill()
            elif draw < 0.022:
                self._suspect()
            elif draw < 0.03:
                self._give_up()
            else:
                self._ordinary()
            self._check()
        return self

    def _reaches(self, one: int, other: int) -> bool:
        return one == other or (one, other) not in self.cut

    def _tear(self) -> None:
        """Some nodes are cut off from the others, in one direction or in both."""
        numbers = range(len(self.members))
        group = set(self.random.sample(numbers, self.random.randrange(1, len(numbers))))
        ways = self.random.choice(("in", "out", "both"))
        for one in group:
            for other in {*numbers} - group:
                self.cut |= {(other, one)} if ways != "out" else set()
                self.cut |= {(one, other)} if ways != "in" else set()
        self.trace.append(f"cut {sorted(group)} {ways}")

    def _kill(self) -> None:
        member = self.random.choice(self.members)
        member.alive = member.trains = False
        for charge in self.charges:
            charge.is_dead |= charge.home == member.number
        self.trace.append(f"{member.number} dies")

    def _suspect(self) -> None:
        """A controller counts a node as lost, or an agent leaves its controller: also without a reason."""
        charge = self.random.choice(self.charges)
        if not charge.over and self.random.random() < 0.5:
            node = self.random.choice(charge.live)
            if node != charge.home:
                self.trace.append(f"{charge.number} gives up {node}")
                charge.controller.node_down(node, "it is silent")
                self._collect(charge)
            return
        charge = self.random.choice(self.charges)
        silent = [m for m in self.members if m.obeys is charge and not self._reaches(charge.home, m.number)]
        for member in silent or [self.random.choice(self.members)]:
            ours = member.obeys.home == member.number  # of its own launcher
            if member.trains and member.waits_at is None and not ours and member.allegiance.can_elect():
                self._leave(member)

    def _leave(self, member: Member) -> None:
        self.trace.append(f"{member.number} leaves {member.obeys.number}")
        member.waits_at, member.next_place = -1, 0

    def _give_up(self) -> None:
        """A deputy refuses all, or a controller looks for those whom it has lost."""
        member = self.random.choice(self.members)
        if member.waits_at is not None and self.random.random() < 0.1:
            member.trains, member.waits_at = False, None
            for other in self.members:
                other.election.leave(member.number)
        charge = self.random.choice(self.charges)
        if charge.over:
            return
        succession = charge.controller.succession
        unproven = succession.unproven()
        dead = [n for n in unproven if not self.members[n].alive and self._reaches(charge.home, n)]
        self.suspended += bool(unproven)
        if dead:
            succession.proven_dead(dead)
        elif unproven:
            for later in (0.0, PROOF_S + 1.0):
                succession.suspended(charge.out.clock + later)
        self._collect(charge)

    def _ordinary(self) -> None:
        member = self.random.choice(self.members)
        if not member.trains:
            return
        charge, number = member.obeys, member.number
        if member.waits_at is not None:
            self._join(member)
        elif charge.over and self._reaches(charge.home, number):
            self._leave(member)  # its stream ends
        elif self.random.random() < 0.5:
            box = charge.says.get(number, ())
            if box and self._reaches(charge.home, number):
                member.handle(box.popleft(), self.ranks)
        elif charge.hears.get(number) and self._reaches(number, charge.home) and not charge.over:
            charge.controller.handle(number, charge.hears[number].popleft())
            self._collect(charge)

    def _collect(self, charge: Charge) -> None:
        """What a controller has said."""
        decided = [message["t"] for _, message in charge.out.sent if message["t"] in DECISIONS]
        if charge.number < self.charges[-1].number:
            self._after.setdefault(charge.number, []).extend(decided)
        for node, message in charge.out.sent:
            charge.says.setdefault(node, deque()).append(message)
        charge.out.sent.clear()

    # ---- elections --------------------------------------------------------------------------------------------------

    def _join(self, member: Member) -> None:
        places = member.allegiance.places()
        if member.waits_at is not None and member.waits_at >= 0:
            deputy = self.members[member.waits_at]
            if not deputy.alive:
                deputy.election.leave(member.number)
                member.waits_at = -1
            else:
                self._elect(deputy)
            return
        if member.next_place >= len(places):
            member.trains, member.waits_at = False, None
            return
        node = places[member.next_place][0]
        deputy = self.members[node]
        asks = self._reaches(member.number, node) and self._reaches(node, member.number)
        if not asks or (deputy.alive and node == member.obeys.home and not member.obeys.over):
            member.next_place += asks is False and (deputy.alive or can_elect(dict.fromkeys(p[0] for p in places)))
            member.next_place += asks  # it was left as silent
            return
        if not deputy.alive:
            member.next_place += 1
            return
        in_charge = [charge for charge in self.charges if charge.home == node]
        report = member.allegiance.report((), member.term)
        if in_charge or report is None:
            member.trains, member.waits_at = False, None  # it goes on without this node
            return
        report["heard"] = member.number in member.obeys.live
        hello = {"node": member.number, "host_id": "", "hostname": "", "data_host": "", "data_port": 0, "free_bytes": 0}
        said: Any = unpack(
            AGENT_TO_CONTROLLER,
            pack(make(AGENT_TO_CONTROLLER, "hello", proof=b"", nonce=b"", pid=0, joins=report, **hello)),
        )["joins"]
        known = Node(member.number, "m", "", ("host", member.number), 1 << 40, 0.0, ("host", member.number))
        self.trace.append(f"{member.number} joins {node}, term {report['term']}, record {report['number']}")
        if deputy.election.join(Joined.of(known, said)):
            member.term = deputy.election.term
            return
        member.waits_at, member.term = node, 0
        if self.random.random() < 0.5:
            self._elect(deputy)

    def _elect(self, deputy: Member) -> None:
        election = deputy.election
        for node in election.outdated():
            election.leave(node)
            self.members[node].waits_at, self.members[node].term = -1, election.term
        for node in election.missing():
            if not self.members[node].alive and self._reaches(deputy.number, node):
                election.dead.add(node)
        if deputy.number in election.joined and (election.is_complete() or election.has_majority()):
            self._take_over(deputy, election)

    def _take_over(self, deputy: Member, election: Election) -> None:
        self.voted += not election.is_complete()
        self.taken += 1
        for node in election.outsiders():
            election.leave(node)
            self.members[node].trains, self.members[node].waits_at = False, None
        joined = dict(election.joined)
        for charge in self.charges:  # whoever is away so long notices it
            charge.controller.state.quorum.was_away()
        self.trace.append(f"{deputy.number} takes over with {sorted(joined)}, dead {sorted(election.dead)}")
        out, home = Recorder(), deputy.number
        takeover = Takeover(out, lambda job, directory: Found(), joined, election.record, 0.0, home, election.dead)
        charge = Charge(home, len(self.charges), out, takeover.controller)
        self.charges.append(charge)
        for node in joined:
            self.members[node].obeys, self.members[node].waits_at = charge, None
        takeover.begin()
        self._collect(charge)

    # ---- what must be so --------------------------------------------------------------------------------------------

    def _hear(self, charge: Charge) -> set[int]:
        """Who obeys `charge` in truth, as far as it knows itself."""
        return {
            node for node in charge.live
            if self.members[node].obeys is charge and self.members[node].waits_at is None and self.members[node].trains
        }  # fmt: skip

    def _check(self) -> None:
        able = []
        for charge in self.charges:
            if not charge.over and charge.controller.state.quorum.holds(self._hear(charge)):
                able.append(charge.number)
        if len(able) > 1:
            self._fail(f"controllers {able} can decide")
        for number, decided in self._after.items():
            if decided.count("verdict") or decided.count("w") > len(self.members):
                self._fail(f"controller {number} has decided when another one had taken over: {decided}")

    def _fail(self, text: str) -> None:
        raise Violation("\n".join([*self.trace[-60:], text]))
