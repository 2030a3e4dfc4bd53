"""Nodes that leave in order: their ranks move to standbys or spares at an iteration boundary, and no iteration is lost.

Asked for by hand (`fftrain drain`), or by a signal that one node's launcher got. The rules are in docs/protocol.md,
section 4: asked -> accepted -> pausing (ranks stop behind a copied version) -> moved (a failover) -> released.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Set
from dataclasses import dataclass

from ff_core.controller.state import JobControl, JobState

#: Signals of a whole job reach its nodes about so close together. Only then it is known who could take whose ranks.
_TOGETHER_S = 1.0


@dataclass(slots=True)
class Drain:
    """signum: the signal that the node got, 0 if it was asked for by hand.  answer: is told how it ended; empty: well.
    asked_at: wall clock, seconds."""

    node: int
    signum: int
    answer: Callable[[str], None]
    asked_at: float
    accepted: bool = False
    moved: bool = False

    @property
    def why(self) -> str:
        return signal.Signals(self.signum).name if self.signum else "fftrain drain"


class Drains:
    """Of the whole job, restarts included. waiting: node -> its drain, until it is released or refused."""

    def __init__(self, state: JobState, control: JobControl) -> None:
        self._state, self._control, self._out = state, control, state.out
        self.waiting: dict[int, Drain] = {}
        self._pausing: tuple[int, int] | None = None  # (epoch, W) with which ranks were told to pause

    # ---- asked, accepted, refused -----------------------------------------------------------------------------------

    def on_drain(self, node: int, signum: int) -> None:
        """The launcher of `node` got a signal."""

        def answer(reason: str) -> None:
            if reason and node in self._state.members.nodes:
                # Its workers get the signal now, and it ends with them: nobody is to be replaced there.
                self._state.members.nodes[node].leaving = True
                self._out.send(node, "stay", signum=signum, reason=reason)

        self.ask(node, signum, answer)

    def ask(self, node: int, signum: int, answer: Callable[[str], None]) -> None:
        """`node` is to leave. answer(reason): called once, empty when it has left, else why it stays."""
        known = self._state.members.nodes.get(node)
        if known is None or not known.alive:
            live = ", ".join(map(str, self._state.members.live_nodes()))
            answer(f"there is no node {node}; there are {live}")
        elif node in self.waiting:
            answer(f"node {node} is being drained already")
        elif node == self._state.home and not self._state.job.emulated:
            answer(f"node {node} has the controller: it cannot be drained")
        else:
            drain = self.waiting[node] = Drain(node, signum, answer, self._out.now())
            problem = self._problem({node})
            if problem:
                self._refuse(drain, problem)

    def tick(self, now: float) -> None:
        """Accept or refuse, all together, what was asked for a moment ago; and what cannot be any more."""
        new = [drain for drain in self.waiting.values() if not drain.accepted]
        if any(now - drain.asked_at >= (_TOGETHER_S if drain.signum else 0.0) for drain in new):
            problem = self._problem(set(self.waiting))
            for drain in new:
                if problem:
                    self._refuse(drain, problem)
                    continue
                drain.accepted = True
                ranks = [rank.rank for rank in self._state.members.on_node(drain.node)]
                self._tell(drain, "accepted", f"is to leave ({drain.why}): ranks {ranks} move")
        going = self._to_move()
        problem = self._problem({drain.node for drain in going})
        for drain in going:
            if problem:
                self._refuse(drain, problem)
            elif self._state.settled and self._needless(drain.node):
                self._release(drain)

    def _problem(self, nodes: Set[int]) -> str:
        """Why `nodes` cannot leave together; empty if they can, or if that is not to be told in a failover."""
        state, members = self._state, self._state.members
        playing = {rank.rank for node in nodes for rank in members.on_node(node)}
        if nodes and (not state.is_protecting or state.has_left()):
            return "training is not protected now, outside of its loop"
        if not playing:
            return ""
        if not state.settled:
            waits = state.round is not None and state.round.waits_since is not None
            return "ranks without a place are waiting for a node" if waits else ""
        if not members.has_room_without(nodes):
            return "no standby and no spare elsewhere can take its ranks"
        local = any((rank.layout or {}).get("local_bytes", 0) for rank in members.ranks.values())
        groups = state.kinds.groups or {frozenset(members.ranks)}
        if (state.kinds.has_constant or local) and any(group <= playing for group in groups):
            return "no rank elsewhere holds the replicated and frozen state of its ranks"
        return ""

    def _refuse(self, drain: Drain, reason: str) -> None:
        del self.waiting[drain.node]
        self._tell(drain, "refused", f"is not drained ({drain.why}): {reason}")
        drain.answer(reason)

    # ---- pausing, moving --------------------------------------------------------------------------------------------

    def pause(self, version: int) -> bool:
        """W is about to rise to `version`. Whether ranks are to pause behind the copied version that follows it."""
        told = self._pausing is not None and self._pausing[0] == self._state.epoch
        if told or not self._to_move():
            return False
        self._pausing = self._state.epoch, version
        return True

    def w_rose(self, version: int) -> None:
        """W has risen, and everybody was told. If the ranks have paused they are moved now, or go on."""
        state = self._state
        paused, self._pausing = self._pausing, None
        if paused == (state.epoch, version):
            self._pausing = paused  # they will
        elif paused is not None and paused[0] == state.epoch and not state.has_left():
            self._move()
        for drain in list(self.waiting.values()):
            if drain.moved and self._needless(drain.node):
                self._release(drain)

    def _to_move(self) -> list[Drain]:
        return [drain for drain in self.waiting.values() if drain.accepted and not drain.moved]

    def _move(self) -> None:
        members, going = self._state.members, self._to_move()
        problem = self._problem({drain.node for drain in going})
        if problem:
            for drain in going:
                self._refuse(drain, problem)
            going = []
        killed = [(drain.node, rank.rank) for drain in going for rank in members.on_node(drain.node)]
        for drain in going:
            drain.moved = members.nodes[drain.node].leaving = True
            members.nodes[drain.node].spares.clear()
        for _, number in killed:
            members.ranks[number].alive, members.ranks[number].leaving = False, None  # not counted against it
        cause = "; ".join(f"node {drain.node} is drained ({drain.why})" for drain in going)
        cause = cause or "no node is drained after all"
        self._control.begin_failover({rank for _, rank in killed}, cause, self._out.now())
        for node, number in killed:  # their slots are what counts, and lie in the agent's memory
            self._out.send(node, "fail_worker", rank=number, reason="its node is drained, it goes on elsewhere")

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _needless(self, node: int) -> bool:
        """Nobody needs `node` any more."""
        return not self._state.members.on_node(node) and not self._state.members.holds(node)

    def _release(self, drain: Drain) -> None:
        del self.waiting[drain.node]
        self._state.members.nodes[drain.node].alive = False
        self._control.gone(drain.node)
        self._out.send(drain.node, "stop", code=1 if drain.signum else 0, signum=0, drained=True)
        self._tell(drain, "released", f"has left ({drain.why}); nothing was lost")
        drain.answer("")

    def restarts(self) -> None:
        """The script starts again: whose ranks have moved is not needed, the others are asked anew."""
        self._pausing = None
        for drain in list(self.waiting.values()):
            if drain.moved:
                self._release(drain)

    def lost(self, node: int) -> None:
        """`node` was quicker."""
        drain = self.waiting.pop(node, None)
        if drain is not None:
            drain.answer(f"node {node} is lost")

    def _tell(self, drain: Drain, step: str, text: str) -> None:
        self._out.emit("drain", node=drain.node, step=step, why=drain.why, text=text)
        self._out.say(f"node {drain.node} {text}")
