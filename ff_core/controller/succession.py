"""The part of the controller that provides for its own end: it tells all agents what a successor will need, and decides
nothing while another one could have been elected.

The rules are in docs/protocol.md, section 8; what it tells is in `record.py`, who counts in `quorum.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ff_core.contract.terms import TERM_BITS, can_elect
from ff_core.controller.quorum import Places
from ff_core.controller.record import Record, places
from ff_core.controller.state import JobControl, JobState

#: A suspended controller looks so long for proof that lost nodes are dead.
PROOF_S = 2.0


class Succession:
    """Of the whole job. preload: what spares import, once it is known.  number: of the newest record."""

    def __init__(self, state: JobState, control: JobControl, preload: Callable[[], dict[str, Any] | None]) -> None:
        self._state, self._control, self._preload = state, control, preload
        self.number = 0
        self._told: tuple[Any, ...] = ()
        self._suspended_at: float | None = None
        self._ticked_at = float("inf")
        self._warned = False

    def takes_over(self, number: int, term: int, memberships: Sequence[Places]) -> None:
        """number: of the newest record before.  memberships: by which this controller was elected in `term`."""
        for membership in memberships:
            self._state.quorum.tells(number, membership)
        self.number = max(number, term << TERM_BITS)

    # ---- records ----------------------------------------------------------------------------------------------------

    def look(self, *, nodes: bool = False) -> None:
        """Something has happened. If a successor would have to know it, all agents are told. Cheap if not.
        nodes: one has come or gone."""
        state = self._state
        if not state.is_protecting or state.resuming is not None or state.has_left() or state.finished:
            if self._told and not state.finished:
                self._withdraw()  # a death is no failover now
            self._told = ()
            return
        told = (
            state.restart, state.epoch, state.settled, len(state.fired), state.last_checkpoint,
            self._preload() is not None,
        )  # fmt: skip
        if (told != self._told or nodes) and state.may_decide():
            self._told = told
            self.tell()

    def tell(self) -> None:
        """A new record, to every agent; none where all nodes have one launcher, or where some launcher cannot be proven
        dead: then nobody is to take over."""
        members = self._state.members
        listening = places(members)
        if len(listening) < 2 or set(listening) != set(members.live_nodes()):
            self._withdraw()
            return
        self.number += 1
        self._state.quorum.tells(self.number, listening)
        self._send(Record.of(self._state, self._preload()).to_wire())
        if not can_elect(listening) and not self._warned:
            self._warned = True
            home = self._state.home
            self._state.out.say(
                f"two nodes are no majority without node {home}: should it fall silent (power, network) the job ends. "
                "With a third node, such as one with --standby, another one takes over"
            )

    def _withdraw(self) -> None:
        """Agents are to have no record."""
        if self._state.quorum.is_told():
            self.number += 1
            self._state.quorum.tells(self.number, {})
            self._send({})

    def _send(self, content: dict[str, Any]) -> None:
        for node in self._state.members.live_nodes():
            self._state.out.send(node, "record", number=self.number, content=content)

    def on_recorded(self, node: int, number: int) -> None:
        state = self._state
        if state.quorum.has(node, number, state.members.live_nodes()):
            self._fewer_count()

    def _fewer_count(self) -> None:
        if self._told and self._state.may_decide():
            self.tell()  # with fewer elders

    # ---- whether this is the controller still -----------------------------------------------------------------------

    def unproven(self) -> dict[int, tuple[str, int]]:
        """While this controller may not decide: nodes whose proof of death would help, and where they would listen."""
        state = self._state
        if state.finished or state.may_decide():
            return {}
        return state.quorum.unproven(state.members.live_nodes())

    def proven_dead(self, nodes: Collection[int]) -> None:
        """Nobody listens where the launchers of `nodes` would, and their machines say so."""
        state = self._state
        before = state.may_decide()
        state.quorum.dead |= {*nodes}
        if state.quorum.settle(state.members.live_nodes()):
            self._fewer_count()
        if not before and state.may_decide() and not state.finished:
            self._suspended_at = None
            state.out.say(f"node {', '.join(map(str, sorted(nodes)))} is dead: the job goes on")
            self._control.may_decide_again()
            self.look(nodes=True)

    def runs(self, now: float) -> None:
        """To be called a few times a second. If this process stood still, others were not silent: nobody read. And they
        may have elected another controller."""
        if now - self._ticked_at > self._state.config.heartbeat_timeout_s / 2:
            self._state.quorum.was_away()
            for node in self._state.members.nodes.values():
                node.last_beat = max(node.last_beat, now)
        self._ticked_at = now

    def suspended(self, now: float) -> bool:
        """Whether nothing may be decided now. It ends this controller if that lasts."""
        state = self._state
        if state.may_decide():
            self._suspended_at = None
            return False
        if self._suspended_at is None:
            self._suspended_at = now
            state.out.say("less than half of the job's nodes are heard: nothing is decided")
        elif now - self._suspended_at > PROOF_S:
            silent = ", ".join(map(str, sorted(self.unproven())))
            state.finished = True  # whatever still comes is ignored
            state.out.fenced(f"node {silent} cannot be heard from node {state.home}, and may go on without it")
        return True
