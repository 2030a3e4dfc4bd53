"""What an agent's parts share: one node's state."""

from __future__ import annotations

from collections.abc import Callable

from ff_core.agent.interfaces import Port, WorkerPool
from ff_core.agent.replica_store import ReplicaStore
from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec

Send = Callable[..., None]


class NodeState:
    """One node as its agent knows it.

    send(name, **fields): to the controller.  say(text): to the person watching.
    epoch: of the last start or verdict.  halt_epoch: announced without a verdict yet; None while nothing is halted.
    verdict: old epoch, epoch and version of the newest one that was carried out; after a start version -1.
    config: the settings in force.  standby: it plays no rank and waits for a lost node's.  stopping: the job is over.
    """

    def __init__(
        self, node: int, job: JobSpec, port: Port, workers: WorkerPool, send: Send, say: Callable[[str], None]
    ) -> None:
        self.node, self.job, self.port, self.workers, self.send, self.say = node, job, port, workers, send, say
        self.config = Settings.from_wire(job.config).config
        self.store = ReplicaStore(node)
        self.epoch = 0
        self.verdict = (0, 0, -1)
        self.halt_epoch: int | None = None
        self.standby = False
        self.stopping = False

    def begin(self, epoch: int, *, standby: bool) -> None:
        """The script starts: `epoch` runs, and nothing is halted. A standby knows no verdict of it."""
        self.epoch, self.halt_epoch, self.standby = epoch, None, standby
        self.verdict = (-1, -1, -1) if standby else (epoch, epoch, -1)

    def carry_out(self, old_epoch: int, epoch: int, version: int) -> None:
        """A verdict: the slots that count are those of `old_epoch`, and belong to `epoch` from now on."""
        self.store.restamp(version, old_epoch, epoch)
        self.epoch, self.verdict = epoch, (old_epoch, epoch, version)
