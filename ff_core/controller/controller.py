"""The controller: the job's state machine. No sockets, no clocks, no threads; `service.py` connects it to agents.

In: `node_up`, `node_down`, `handle(node, message)`, `tick`. Out: an `Outbox`. Every decision of docs/protocol.md
sections 3 and 4 is made here or in `decide.py`. Start-up is in `startup.py`, one failover's data in
`failover_round.py`.
"""

from __future__ import annotations

from typing import Any, Protocol

from ff_core.config.schema import FailoverConfig
from ff_core.contract.inject import parse
from ff_core.contract.job import JobSpec
from ff_core.contract.messages import Message
from ff_core.controller.deaths import Deaths
from ff_core.controller.decide import Impossible
from ff_core.controller.failover_round import FailoverRound
from ff_core.controller.failovers import Failovers
from ff_core.controller.hang import HangDetector
from ff_core.controller.loop_end import LoopEnd
from ff_core.controller.membership import Membership, Node
from ff_core.controller.startup import Startup
from ff_core.errors import ProtocolError


class Outbox(Protocol):
    """Where the controller's decisions go."""

    def send(self, node: int, name: str, **fields: Any) -> None:
        """A message to the agent of `node`."""

    def emit(self, kind: str, **fields: Any) -> None:
        """A line for events.jsonl."""

    def say(self, text: str) -> None:
        """A line for the person watching."""

    def finish(self, code: int, summary: str) -> None:
        """The job is over; agents must be stopped. `summary` is the last thing a person reads (may hold a
        traceback)."""

    def abandon(self, node: int) -> None:
        """The node counts as lost: whatever of it still runs, frozen perhaps, must not go on as if it belonged to the
        job."""

    def now(self) -> float:
        """Wall clock, seconds."""


class Controller:
    """One job's controller. Methods are called from one thread."""

    def __init__(self, job: JobSpec, config: FailoverConfig, outbox: Outbox) -> None:
        self.job, self.config, self.out = job, config, outbox
        self.members = Membership(job.world_size)
        self.epoch = 0
        self.restart = 0
        self.w = -1
        self.startup = Startup(self)
        self.deaths = Deaths(self)
        self.failovers = Failovers(self)
        self.loop_end = LoopEnd(self)
        self.protected = False  # arenas exist and the loop has begun on every rank
        self.finished = False
        self.preload: dict[str, Any] | None = None
        self.fired: set[int] = set()
        self.hangs = HangDetector(config.hang_timeout_s)
        self.last_checkpoint: tuple[str, int] | None = None
        self.protection = ""

    # ---- nodes -----------------------------------------------------------------------------------------------------

    def node_up(self, node: Node) -> None:
        """An agent proved the secret and said hello."""
        if node.id in self.members.nodes and self.members.nodes[node.id].alive:
            raise ProtocolError(f"node {node.id} is already connected")
        if not 0 <= node.id < self.job.nodes:
            raise ProtocolError(f"node {node.id} is not one of the job's {self.job.nodes} nodes")
        if node.id in self.members.nodes:
            raise ProtocolError(f"node {node.id} was lost; a node cannot rejoin a running job")
        self.members.nodes[node.id] = node
        self.out.emit("node_start", node=node.id, hostname=node.hostname, pid=node.pid)
        if len(self.members.nodes) == self.job.nodes:
            self.startup.begin()

    def node_down(self, node_id: int, reason: str) -> None:
        """An agent's stream ended or its heartbeats did: its workers end with it, its replicas are gone."""
        node = self.members.nodes.get(node_id)
        if node is None or not node.alive or self.finished:
            return
        node.alive = False
        node.spares.clear()
        self.out.abandon(node_id)
        self.out.send(
            node_id, "stop", code=1, signum=0
        )  # if it only fell silent: its ranks are played elsewhere from now on
        lost = [rank for rank in self.members.on_node(node_id) if not rank.exited]
        self.out.emit("node_lost", node=node_id, reason=reason, ranks=[rank.rank for rank in lost])
        self.out.say(f"node {node_id} ({node.hostname}) is lost: {reason}")
        now = self.out.now()
        for rank in lost:
            rank.alive, rank.leaving = False, None  # not the rank's fault: not counted against it
        if not lost and self.protected and not self.loop_end.has_left():
            self.failovers.begin(set(), f"node {node_id} lost: {reason}", now)  # its replicas must move
        elif lost:
            self.deaths.happened({rank.rank for rank in lost}, f"node {node_id} lost: {reason}", now)

    # ---- messages --------------------------------------------------------------------------------------------------

    def handle(self, node: int, message: Message) -> None:
        """One message from the agent of `node`."""
        if self.finished or not self.members.nodes[node].alive:
            return  # a node that was declared lost stays lost: its ranks live elsewhere, its slots are of the past
        self.members.nodes[node].last_beat = self.out.now()
        if message.get("rank") == -1 and message["t"] != "worker_started":
            return  # of a process that played a rank in the previous start
        fields = {key: value for key, value in message.items() if key != "t"}
        name = f"on_{message['t']}"
        handler = next(
            (
                getattr(part, name)
                for part in (self, self.startup, self.deaths, self.failovers, self.loop_end)
                if hasattr(part, name)
            ),
            None,
        )
        if handler is None:
            raise ProtocolError(f"an agent must not send {message['t']!r}")
        handler(node, **fields)

    def on_beat(self, node: int, free_bytes: int, progress: dict[int, list[int]]) -> None:
        self.members.nodes[node].free_bytes = free_bytes
        for rank, (count, activity) in progress.items():
            self.hangs.observe(rank, count, activity, self.out.now())

    def on_stopped(self, node: int) -> None:
        """Only the service acts on it."""

    def on_commit(self, node: int, epoch: int, versions: dict[int, int]) -> None:
        if epoch != self.epoch:
            return
        for number, version in versions.items():
            rank = self.members.ranks[number]
            if rank.node == node:
                rank.committed = max(rank.committed, (epoch, version))
        self.publish_w()

    def publish_w(self) -> None:
        """Recompute W, the newest version committed by every rank in this epoch, and tell the agents if it rose."""
        newest = min(
            (rank.committed[1] if rank.committed[0] == self.epoch else -1) for rank in self.members.ranks.values()
        )
        if newest > self.w and self.failovers.settled:
            self.w = newest
            for other in self.members.live_nodes():
                self.out.send(other, "w", epoch=self.epoch, version=newest)
            self.out.emit("commit", W=newest, epoch=self.epoch)
            self.hangs.iteration(self.out.now())
            self.loop_end.on_w(newest)

    def on_spare_ready(self, node: int, uid: str) -> None:
        if uid in self.members.nodes[node].spares:
            self.members.nodes[node].spares[uid] = True
        self.out.emit("spare_ready", node=node, uid=uid)

    def on_spare_gone(self, node: int, uid: str) -> None:
        self.members.nodes[node].spares.pop(uid, None)

    def on_preload(self, node: int, **what: Any) -> None:
        if self.preload is None:
            self.preload = what
            for other in self.members.live_nodes():
                self.out.send(other, "preload", **self.preload)

    def on_hint(self, node: int, rank: int, text: str, site: str) -> None:
        self.out.emit("hint", rank=rank, text=text, site=site)

    def on_persisted(self, node: int, rank: int, path: str, version: int) -> None:
        if self.last_checkpoint is None or version >= self.last_checkpoint[1]:
            self.last_checkpoint = (path, version)
            self.out.emit("persisted", path=path, version=version)

    def on_inject_fired(self, node: int, rank: int, id: int, at: float, action: str) -> None:
        """A fault is about to be injected: note it, so that it fires once per job, then let it happen."""
        self.fired.add(id)
        self.out.emit("injection", rank=rank, id=id, action=action, at=at)
        if action != "corrupt-slot":
            self.deaths.kill_times[rank] = at
            self.out.send(node, "inject_ack", id=id, rank=rank)
            return
        kind = parse(self.job.injections[id]).slot
        where = self.members.ranks[rank].holders[:1] if kind == "replica" else [node]
        if where:
            self.out.send(where[0], "corrupt", rank=rank, kind=kind, id=id, to=node)
        else:
            self.out.say(f"--inject {self.job.injections[id]!r}: rank {rank} has no replica to corrupt")
            self.out.send(node, "inject_ack", id=id, rank=rank)

    def on_corrupted(self, node: int, rank: int, id: int, to: int) -> None:
        self.out.send(to, "inject_ack", id=id, rank=rank)

    def on_worker_started(self, node: int, rank: int, uid: str, pid: int, warm: bool) -> None:
        if rank < 0:
            self.members.nodes[node].spares[uid] = False
            return
        entry = self.members.ranks[rank]
        if entry.uid != uid:
            return  # of the previous start
        entry.started = True
        self.out.emit("worker_start", rank=rank, pid=pid, node=node, warm=warm, restart=self.restart, epoch=self.epoch)

    def injections_left(self) -> list[list[Any]]:
        """[id, text] of the injections that have not fired yet."""
        return [[index, text] for index, text in enumerate(self.job.injections) if index not in self.fired]

    # ---- end -------------------------------------------------------------------------------------------------------

    def unrecoverable(self, verdict: Impossible, current: FailoverRound) -> None:
        lost = "; ".join(
            f"rank {rank} can supply {versions or 'nothing'}" for rank, versions in sorted(verdict.lost.items())
        )
        nxt = (
            f"the newest persisted checkpoint is {self.last_checkpoint[0]} (iteration {self.last_checkpoint[1]})"
            if self.last_checkpoint
            else "no checkpoint was persisted by this job"
        )
        text = f"unrecoverable: {current.cause}: {verdict.reason}: {lost}; {nxt}"
        self.out.emit(
            "unrecoverable",
            text=text,
            lost={str(k): v for k, v in verdict.lost.items()},
            checkpoint=self.last_checkpoint,
        )
        self.restart_job(text, current.dead)

    def restart_job(self, reason: str, dead: set[int]) -> None:
        """Start the whole script again, as torchrun does, or end the job."""
        if self.restart >= self.job.max_restarts or len(self.members.live_nodes()) < self.job.nodes:
            tails = [self.members.ranks[rank].tail for rank in sorted(dead) if self.members.ranks[rank].tail]
            self.finish(1, reason + ("\n" + tails[0] if tails else ""))
            return
        self.restart += 1
        self.epoch += 1  # what the old processes still say is of an older one, and dropped
        self.out.emit("restart", reason=reason, restart=self.restart)
        self.out.say(f"{reason}; starting the script again ({self.restart} of {self.job.max_restarts} restarts)")
        nodes, failures = self.members.nodes, {r.rank: r.failures for r in self.members.ranks.values()}
        self.members = Membership(self.job.world_size)
        self.members.nodes = nodes
        for number, counts in failures.items():
            self.members.ranks[number].failures = counts if self.protected else {}
        self.w, self.protected = -1, False
        self.startup, self.deaths = Startup(self), Deaths(self)
        self.failovers, self.loop_end = Failovers(self), LoopEnd(self)
        self.startup.begin()

    def finish(self, code: int, summary: str) -> None:
        if not self.finished:
            self.finished = True
            self.out.emit("job_end", code=code, summary=summary)
            self.out.finish(code, summary)

    def tick(self) -> None:
        """Deadlines: heartbeats and joining. Called a few times a second."""
        if self.finished:
            return
        now = self.out.now()
        for node in list(self.members.nodes.values()):
            if node.alive and now - node.last_beat > self.config.heartbeat_timeout_s:
                self.node_down(node.id, f"no heartbeat for {self.config.heartbeat_timeout_s:g} s")
        self.failovers.tick(now)
        looking = self.protected and self.failovers.settled and self.loop_end.left_version is None
        uneven = self.hangs.uneven(self.job.world_size, now) if looking else None
        if uneven is not None:
            self.finish(1, self.loop_end.uneven(*uneven))
        elif looking and self.hangs.stalled(self.job.world_size, now):
            culprits = self.hangs.culprits(self.job.world_size, now)
            if not culprits:
                text = f"no progress for {self.hangs.deadline_s:g} s, and no rank is behind others: nobody is blamed"
                self.out.emit("hang", rank=-1, text=text)
                self.out.say(text)
                self.hangs.reset()
            for rank in culprits:
                text = f"no progress for {self.hangs.deadline_s:g} s while others wait for it (hang_timeout_s)"
                self.out.emit("hang", rank=rank, text=text)
                self.out.send(self.members.ranks[rank].node, "fail_worker", rank=rank, reason=text)
                self.hangs.reset()
