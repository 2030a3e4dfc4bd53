"""A controller with a recorder for an outbox, brought to where training is protected."""

from __future__ import annotations

from typing import Any

from ff_core.config.schema import FailoverConfig
from ff_core.contract.job import JobSpec
from ff_core.contract.messages import AGENT_TO_CONTROLLER, CONTROLLER_TO_AGENT, make, pack, unpack
from ff_core.contract.persisted import Found
from ff_core.controller.controller import Controller
from ff_core.controller.membership import Node
from ff_core.controller.outbox import Outbox
from ff_core.controller.resuming import Find
from ff_core.controller.state import JobState
from ff_core.observe.events import KINDS

SETTINGS = FailoverConfig(enabled=True).to_dict()
LAYOUT = {"sent_bytes": 8192, "local_bytes": 0, "blob_capacity": 4096}


class Recorder(Outbox):
    """Remembers."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.said: list[str] = []
        self.result: tuple[int, str] | None = None
        self.clock = 1000.0
        self.abandoned: list[int] = []
        self.ended_by = ""

    def send(self, node: int, name: str, **fields: Any) -> None:
        message = make(CONTROLLER_TO_AGENT, name, **fields)
        self.sent.append((node, unpack(CONTROLLER_TO_AGENT, pack(message))))

    def emit(self, kind: str, **fields: Any) -> None:
        assert kind in KINDS, f"an event that `fftrain report` and its readers do not know: {kind}"
        self.events.append((kind, fields))

    def say(self, text: str) -> None:
        self.said.append(text)

    def finish(self, code: int, summary: str) -> None:
        self.result = (code, summary)

    def fenced(self, reason: str) -> None:
        self.ended_by = reason

    def abandon(self, node: int) -> None:
        self.abandoned.append(node)

    def now(self) -> float:
        return self.clock

    def take(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """Messages of that name so far, oldest first; they are forgotten."""
        found = [(node, message) for node, message in self.sent if message["t"] == name]
        self.sent = [(node, message) for node, message in self.sent if message["t"] != name]
        return found


class Job:
    """`nodes` x `nproc` ranks; `heard(node, name, ...)` is a message of an agent."""

    def __init__(
        self,
        nodes: int = 2,
        nproc: int = 1,
        *,
        settings: dict[str, Any] | None = None,
        same_machine: bool = True,
        free_bytes: int = 1 << 40,
        find: Find = lambda job, directory: Found(),
        **job: Any,
    ) -> None:
        """find: what versions are on disk."""
        self.out = Recorder()
        self.settings = SETTINGS | (settings or {})
        self.spec = JobSpec(["train.py"], nodes, nproc, "", 0, config=self.settings, **job)
        self.controller = Controller(self.spec, FailoverConfig.from_dict(self.settings), self.out, find)
        for node in range(nodes):
            machine = "m" if same_machine else f"m{node}"
            self.controller.node_up(
                Node(node, machine, f"host{node}", ("127.0.0.1", 4000 + node), free_bytes, self.out.clock)
            )
        self.spawned()

    def spawned(self) -> None:
        """Agents have started the processes that they were told to start."""
        for rank in self.ranks:
            uid = self.state.members.ranks[rank].uid
            if not uid:
                continue  # the job goes on from a version on disk
            self.from_rank(rank, "worker_started", uid=uid, pid=100 + rank, warm=False)

    @property
    def state(self) -> JobState:
        return self.controller.state

    @property
    def ranks(self) -> range:
        return range(self.spec.world_size)

    def home(self, rank: int) -> int:
        return self.state.members.ranks[rank].node

    def heard(self, node: int, name: str, **fields: Any) -> None:
        message = make(AGENT_TO_CONTROLLER, name, **fields)
        self.controller.handle(node, unpack(AGENT_TO_CONTROLLER, pack(message)))

    def from_rank(self, rank: int, name: str, **fields: Any) -> None:
        self.heard(self.home(rank), name, rank=rank, **fields)

    def protect(self, rank: int, **changes: Any) -> None:
        fields = {**LAYOUT, "settings": self.settings, "journal_bytes": 10, "has_constant": False}
        fields |= {"on_device": False, **changes}
        self.from_rank(rank, "protect", **fields)

    def start(self) -> Job:
        """Through start-up: all ranks are training, nothing is committed yet."""
        self.own_at = {rank: self.home(rank) for rank in self.ranks}
        for rank in self.ranks:
            self.protect(rank)
        for node in self.state.members.live_nodes():
            self.heard(node, "arenas_ready", epoch=self.state.epoch)
        for rank in self.ranks:
            self.from_rank(rank, "training")
        return self

    def commit(self, version: int) -> None:
        """Every rank commits `version` in the current epoch."""
        for rank in self.ranks:
            self.heard(self.home(rank), "commit", epoch=self.state.epoch, versions={rank: version})

    def die(self, rank: int, code: int = -9, sealed: int = -1, tail: str = "Traceback: boom") -> None:
        uid = self.state.members.ranks[rank].uid
        self.from_rank(
            rank, "worker_exit", uid=uid, code=code, tail=tail if code else "", sealed=sealed, at=self.out.clock
        )

    def inventory(
        self, node: int, version: int, live: dict[int, int] | None = None, *, epoch: int | None = None
    ) -> None:
        """Node reports own slots of its ranks and the replicas it holds, all at `version`."""
        current = self.state.round
        assert current is not None
        old = current.old_epoch if epoch is None else epoch
        arenas: list[list[Any]] = []
        for rank in self.state.members.ranks.values():
            if self.own_at[rank.rank] == node:
                arenas.append([rank.rank, node, "own", old, version, True])
            if node in rank.holders:
                arenas.append([rank.rank, node, "replica", old, version, True])
        self.heard(node, "inventory", epoch=current.epoch, arenas=arenas, live=live or {})

    def inventories(self, version: int, live: dict[int, int] | None = None) -> None:
        for node in self.state.members.live_nodes():
            self.inventory(node, version, {r: v for r, v in (live or {}).items() if self.home(r) == node})

    def resume(self) -> None:
        """From the verdict until everybody trains again."""
        epoch = self.state.epoch
        self.own_at = {rank: self.home(rank) for rank in self.ranks}
        for rank in self.ranks:
            self.from_rank(rank, "ready", epoch=epoch, restored_bytes=7, at=self.out.clock)
        for rank in self.ranks:
            self.from_rank(rank, "resumed", epoch=epoch, timings={"regroup": 0.1, "rebuild": 0.2, "scalars": 0.3})

    def fail_over(self, rank: int, version: int, code: int = -9) -> None:
        """`rank` dies after `version` was sealed; everybody goes on from there."""
        self.die(rank, code, sealed=version)
        if self.out.result is None:
            self.inventories(version, {other: version for other in self.ranks if other != rank})
            self.resume()


def running(nodes: int = 2, nproc: int = 2, version: int = 4, **options: Any) -> Job:
    """A job that trains and has committed `version`."""
    job = Job(nodes, nproc, **options).start()
    job.commit(version)
    job.out.sent.clear()
    return job
