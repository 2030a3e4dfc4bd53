"""The controller: the job's state machine. No sockets, no clocks, no threads; `service.py` connects it to agents.

In: `node_up`, `node_down`, `handle(node, message)`, `tick`. Out: an `Outbox`. Every decision of docs/protocol.md
sections 3 and 4 is made here, in the parts, or in `decide.py`. The parts share a `JobState`; what concerns all of the
job they ask of this class, which they know as `JobControl`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ff_core.config.schema import FailoverConfig
from ff_core.contract import persisted
from ff_core.contract.dispatch import Dispatch, offered
from ff_core.contract.job import JobSpec
from ff_core.contract.messages import AGENT_TO_CONTROLLER, HANDSHAKE, Message
from ff_core.controller.blame import Blame
from ff_core.controller.copying import Copying
from ff_core.controller.deaths import Deaths
from ff_core.controller.drains import Drains
from ff_core.controller.failover_round import FailoverRound
from ff_core.controller.failovers import Failovers
from ff_core.controller.injections import Injections
from ff_core.controller.loop_end import LoopEnd
from ff_core.controller.membership import Node
from ff_core.controller.outbox import Outbox
from ff_core.controller.persisting import Persisting
from ff_core.controller.resuming import Find, Resuming
from ff_core.controller.startup import Startup
from ff_core.controller.state import JobControl, JobState
from ff_core.controller.succession import Succession
from ff_core.errors import ProtocolError


class Controller(JobControl):
    """One job's controller. Methods are called from one thread."""

    def __init__(self, job: JobSpec, config: FailoverConfig, out: Outbox, find: Find = persisted.find) -> None:
        """find: what versions are on disk; see ff_core.controller.resuming."""
        self.state = JobState(job, config, out)
        self.out, self._find = out, find
        self.preload: dict[str, Any] | None = None
        self._awaited: set[int] = set()  # ranks without which W cannot rise: thousands of commits need not be compared
        self.drains, self.persisting = Drains(self.state, self), Persisting(self.state)
        self.succession = Succession(self.state, self, lambda: self.preload)
        self._make_parts()

    def _make_parts(self) -> None:
        """The parts, which are of one start of the script, and the table of who handles what."""
        self.copying = Copying(self.state)
        self.resuming = Resuming(self.state, self, self._find)
        self.startup = Startup(self.state, self, self.copying, self.resuming)
        self.deaths = Deaths(self.state, self)
        self.failovers = Failovers(self.state, self, self.copying)
        self.loop_end = LoopEnd(self.state, self, self.copying.schedule)
        self.blame = Blame(self.state, lambda *uneven: self.finish(1, self.loop_end.uneven(*uneven)))
        parts = (self, self.copying, self.startup, self.deaths, self.failovers, self.loop_end, Injections(self.state),
                 self.blame, self.drains, self.persisting, self.resuming, self.succession)  # fmt: skip
        # "stopped" is for the service: it may come when the job is over already
        self._dispatch = Dispatch(AGENT_TO_CONTROLLER, *map(offered, parts), elsewhere=HANDSHAKE | {"stopped"})

    # ---- nodes -----------------------------------------------------------------------------------------------------

    def node_up(self, node: Node) -> None:
        """An agent proved the secret and said hello."""
        nodes, size = self.state.members.nodes, self.state.job.nodes
        if node.id in nodes and nodes[node.id].alive:
            raise ProtocolError(f"node {node.id} is already connected")
        if node.id in nodes:
            raise ProtocolError(f"the number {node.id} is a lost node's: who comes again gets a number of its own")
        nodes[node.id] = node
        self.out.emit("node_start", node=node.id, hostname=node.hostname, pid=node.pid)
        if len(nodes) == size:
            self.startup.begin()
        elif len(nodes) > size:
            self._admit(node)

    def _admit(self, node: Node) -> None:
        """One more node than the job needs: it stands by, with processes that can take a lost node's ranks. In the
        middle of a failover it is halted like the others, and ranks without a place get one there."""
        state = self.state
        self.out.say(f"node {node.id} ({node.hostname}) stands by")
        # In the new epoch it will be when it has the verdict, as everybody: before, nothing may connect to it.
        self.startup.admit(node.id, state.epoch - 1 if self.failovers.halts() else state.epoch)
        if self.failovers.halts():
            self.failovers.admit(node.id)
        if self.preload is not None:  # last: a node that has got ranks warms fewer spares
            self.out.send(node.id, "preload", **self.preload)
        self.fill_holders()
        self.succession.look(nodes=True)

    def node_down(self, node_id: int, reason: str) -> None:
        """An agent's stream ended or its heartbeats did: its workers end with it, its replicas are gone."""
        node = self.state.members.nodes.get(node_id)
        if node is None or not node.alive or self.state.finished or self.state.stopping:
            return
        node.alive = False
        node.spares.clear()
        self.out.abandon(node_id)
        self.drains.lost(node_id)
        self.gone(node_id)
        # if it only fell silent: its ranks are played elsewhere from now on
        self.out.send(node_id, "stop", code=1, signum=0, lost=True)
        lost = [rank for rank in self.state.members.on_node(node_id) if not rank.exited]
        self.out.emit("node_lost", node=node_id, reason=reason, ranks=[rank.rank for rank in lost])
        self.out.say(f"node {node_id} ({node.hostname}) is lost: {reason}")
        now = self.out.now()
        for rank in lost:
            rank.alive, rank.leaving = False, None  # not the rank's fault: not counted against it
        holds, cause = self.state.members.holds(node_id), f"node {node_id} lost: {reason}"
        if lost or (holds and not self.state.is_protecting):
            self.deaths.happened({rank.rank for rank in lost}, cause, now)
        elif not self.state.is_protecting:
            self.startup.look()  # perhaps only this node's memory was waited for
        elif (holds and not self.state.has_left()) or not self.state.settled:
            self.failovers.begin(set(), cause, now)  # its replicas must move, or its part of a failover is missing
        else:
            self.loop_end.holder_lost()
        self.succession.look(nodes=True)

    # ---- messages --------------------------------------------------------------------------------------------------

    def handle(self, node: int, message: Message) -> None:
        """One message from the agent of `node`."""
        if self.state.finished or not self.state.members.nodes[node].alive:
            return  # a node that was declared lost stays lost: its ranks live elsewhere, its slots are of the past
        self.state.members.nodes[node].last_beat = self.out.now()
        if message.get("rank") == -1 and message["t"] != "worker_started":
            return  # of a process that played a rank in the previous start
        if self.state.stopping and message["t"] in ("worker_dying", "worker_exit"):
            return
        fields = {key: value for key, value in message.items() if key != "t"}
        self._dispatch.of(message)(node, **fields)
        self.succession.look()

    def on_beat(self, node: int, count: int, free_bytes: int, progress: dict[int, list[Any]]) -> None:
        self.out.send(node, "heard", count=count)
        self.state.members.nodes[node].free_bytes = free_bytes
        for rank, (count, activity, still_s, stopped) in progress.items():
            if self.state.members.ranks[rank].node != node:
                continue  # it has moved
            self.state.hangs.observe(rank, count, activity, self.out.now(), still_s, stopped)

    def on_commit(self, node: int, epoch: int, versions: dict[int, int]) -> None:
        if epoch != self.state.epoch:
            return
        for number, version in versions.items():
            rank = self.state.members.ranks[number]
            if rank.node == node:
                rank.committed = max(rank.committed, (epoch, version))
                if version > self.state.w:
                    self._awaited.discard(number)
        if not self._awaited:
            self.publish_w()

    def publish_w(self) -> None:
        """See JobControl."""
        state = self.state
        newest = min(
            (rank.committed[1] if rank.committed[0] == state.epoch else -1) for rank in state.members.ranks.values()
        )
        rises = newest > state.w and state.settled and state.may_decide()
        self._awaited = {
            rank.rank for rank in state.members.ranks.values()
            if rank.committed[0] != state.epoch or rank.committed[1] <= (newest if rises else state.w)
        }  # fmt: skip
        if rises:
            iterations, had_left = newest - state.w if state.w >= 0 else 0, state.has_left()
            state.w = newest
            interval, pause = self.copying.w_rises(newest), self.drains.pause(newest)
            for other in state.members.live_nodes():
                self.out.send(other, "w", epoch=state.epoch, version=newest, interval=interval, pause=pause)
            self.out.emit("commit", W=newest, epoch=state.epoch)
            state.hangs.iterations(iterations, self.out.now())
            self.loop_end.w_rose(newest)
            self.persisting.w_rose(newest)
            self.drains.w_rose(newest)
            self.deaths.w_rose()
            if had_left:
                self.fill_holders()  # for nodes that have come behind the loop

    def on_spare_ready(self, node: int, uid: str) -> None:
        if uid in self.state.members.nodes[node].spares:
            self.state.members.nodes[node].spares[uid] = True
        self.out.emit("spare_ready", node=node, uid=uid)

    def on_spare_gone(self, node: int, uid: str) -> None:
        self.state.members.nodes[node].spares.pop(uid, None)

    def on_preload(self, node: int, **what: Any) -> None:
        if self.preload is None:
            self.preload = what
            for other in self.state.members.live_nodes():
                self.out.send(other, "preload", **self.preload)

    def on_hint(self, node: int, rank: int, text: str, site: str) -> None:
        self.out.emit("hint", rank=rank, text=text, site=site)

    def on_persisted(self, node: int, rank: int, path: str, version: int) -> None:
        if self.state.last_checkpoint is None or version >= self.state.last_checkpoint[1]:
            self.state.last_checkpoint = (path, version)
            self.out.emit("persisted", path=path, version=version)

    def on_worker_started(self, node: int, rank: int, uid: str, pid: int, warm: bool) -> None:
        if rank < 0:
            self.state.members.nodes[node].spares[uid] = False
            self.failovers.spare_came()
            return
        entry = self.state.members.ranks[rank]
        if entry.uid != uid:
            return  # of the previous start
        entry.started = True
        self.out.emit(
            "worker_start", rank=rank, pid=pid, node=node, warm=warm, restart=self.state.restart, epoch=self.state.epoch
        )

    # ---- end -------------------------------------------------------------------------------------------------------

    def begin_failover(self, dead: set[int], cause: str, died_at: float) -> None:
        """See JobControl."""
        self.failovers.begin(dead, cause, died_at)

    def go_back(self, dead: set[int], cause: str, at: float) -> None:
        """See JobControl."""
        self.loop_end.go_back(dead, cause, at)

    def may_decide_again(self) -> None:
        """See JobControl."""
        self.failovers.look()
        self.publish_w()
        self.loop_end.may_leave()

    def fill_holders(self) -> None:
        """See JobControl."""
        state = self.state
        if state.settled and state.is_protecting and not state.has_left() and state.lacks_holders():
            self.failovers.begin(set(), "a node has come that can hold replicas", self.out.now())

    def drain(self, node: int, answer: Callable[[str], None]) -> None:
        """Somebody wants `node` to leave in order: see Drains.ask."""
        self.drains.ask(node, 0, answer)

    def on_give_up(self, node: int, rank: int, reason: str) -> None:
        """The script of `rank` ends with an error of ours that a replacement, or a restart, would meet again."""
        self.finish(1, f"rank {rank}: {reason}")

    def on_unresumable(self, node: int, rank: int, epoch: int, reason: str) -> None:
        """After a failure `rank` cannot do what it did before it. That is no error of the script's, so the job is
        restarted as if its state were lost."""
        state = self.state
        if epoch != state.epoch:
            return
        checkpoint = f"; the newest saved checkpoint is {state.last_checkpoint[0]}" if state.last_checkpoint else ""
        advice = "" if state.job.max_restarts else ". With --max-restarts N the script is started again in such a case"
        # A version on disk would be loaded in the same way.
        self.restart_job(f"rank {rank} cannot go on after a failure: {reason}{checkpoint}{advice}", set(), anew=True)

    def restart_job(self, reason: str, dead: set[int], *, anew: bool = False) -> None:
        """See JobControl."""
        state = self.state
        most = state.job.max_restarts if state.may_restart else 0
        if state.restart >= most or len(state.members.places()) < state.job.nodes:
            ranks = state.members.ranks
            tails = [ranks[rank].tail for rank in sorted(dead) if ranks[rank].tail]
            self.finish(1, reason + ("\n" + tails[0] if tails else ""))
            return
        self.drains.restarts()
        state.start_again()
        self.out.emit("restart", reason=reason, restart=state.restart)
        self.out.say(f"{reason}; starting the script again ({state.restart} of {state.job.max_restarts} restarts)")
        self._make_parts()
        self.startup.begin(anew=anew)

    def gone(self, node: int) -> None:
        """See JobControl."""
        self.persisting.lost(node)

    def persist_last(self, current: FailoverRound) -> str | None:
        """See JobControl."""
        return self.persisting.last(current)

    def stop(self, summary: str) -> None:
        """A signal came in; agents pass it on. Workers may train on until they agree to save, so everything is answered
        as ever, but there is no failover any more."""
        self.persisting.stops()
        self.state.stopping = True
        self.out.emit("job_end", code=1, summary=summary)

    def finish(self, code: int, summary: str) -> None:
        """See JobControl."""
        if not self.state.finished and not self.state.stopping:
            self.state.finished = True
            if code and self.state.kept is not None:
                folder, version = self.state.kept
                summary += f"\nVersion {version} is on disk, in {folder}: the same command goes on from there"
            self.out.emit("job_end", code=code, summary=summary)
            self.out.finish(code, summary)

    def tick(self) -> None:
        """Deadlines: heartbeats and joining. Called a few times a second."""
        state = self.state
        if state.finished or state.stopping:
            return
        now = self.out.now()
        self.succession.runs(now)
        for node in list(state.members.nodes.values()):
            if node.alive and now - node.last_beat > state.config.heartbeat_timeout_s:
                self.node_down(node.id, f"no heartbeat for {state.config.heartbeat_timeout_s:g} s")
        if self.succession.suspended(now):
            return
        self.failovers.tick(now)
        self.drains.tick(now)
        self.succession.look()
        self.blame.tick(now)
