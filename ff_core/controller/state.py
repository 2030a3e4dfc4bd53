"""What the controller's parts share: one job's state, and the few things that a part asks of the whole job."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec
from ff_core.contract.persisted import Manifest, Part
from ff_core.controller.failover_round import FailoverRound, Step
from ff_core.controller.hang import HangDetector
from ff_core.controller.membership import Membership
from ff_core.controller.outbox import Outbox
from ff_core.controller.quorum import Quorum


class JobControl(Protocol):
    """What a part asks of the job as a whole. `Controller` is it."""

    @abstractmethod
    def begin_failover(self, dead: set[int], cause: str, died_at: float) -> None:
        """Halt everyone: `dead` ranks (possibly none: a bad slot, a lost holder) force a new epoch. died_at: wall
        clock, seconds."""

    @abstractmethod
    def go_back(self, dead: set[int], cause: str, at: float) -> None:
        """`dead` ranks died between two training loops: see LoopEnd.go_back."""

    @abstractmethod
    def restart_job(self, reason: str, dead: set[int], *, anew: bool = False) -> None:
        """Start the whole script again, as torchrun does, or end the job. dead: ranks whose last words count.
        anew: from its beginning, whatever lies on disk."""

    @abstractmethod
    def finish(self, code: int, summary: str) -> None:
        """End the job, unless it has ended already."""

    @abstractmethod
    def persist_last(self, current: FailoverRound) -> str | None:
        """The job would end in this halt: see Persisting.last."""

    @abstractmethod
    def gone(self, node: int) -> None:
        """Nothing that was asked of `node` will come any more: it is lost, or has left in order."""

    @abstractmethod
    def publish_w(self) -> None:
        """Compute W anew, the newest version committed by every rank in this epoch; tell the agents if it rose."""

    @abstractmethod
    def may_decide_again(self) -> None:
        """What was held back while this controller was suspended."""

    @abstractmethod
    def fill_holders(self) -> None:
        """Begin an epoch without a death if training runs and a node has come that can hold replicas which are missing.
        To be asked when either becomes true."""


@dataclass(slots=True)
class StateKinds:
    """What the ranks have said of the state that they hold.

    has_constant: some holds CONSTANT tensors.  frozen: those that do.  on_device: some holds its state on a device.
    groups: redundancy groups, where they are not all ranks.
    """

    has_constant: bool = False
    frozen: set[int] = field(default_factory=set)
    on_device: bool = False
    groups: set[frozenset[int]] = field(default_factory=set)


class JobState:
    """One job as its controller knows it.

    restart: how often the script was started again.  epoch: raised by every failover and restart.
    finished: the job is over.  stopping: a signal came, workers come to their end and nobody is replaced.
    coverage: the sentence that says what the job is protected against, empty before that is known.
    fired: injections that have happened.  last_checkpoint: (path, version) of the newest persisted one.
    hangs: watches progress.  members: nodes, ranks and spares.
    serial: of the next version on disk.
    home: the node whose launcher has this controller.  endpoint: where nodes that come find it, HOST:PORT; empty: where
    the job began.  line: what node 0 was started with, which nodes that come must have been, too.
    may_restart: the script can be started again from its beginning, as often as the job says.
    quorum: who could elect another controller.

    Of the running start of the script:
    w: newest version that every rank has committed in this epoch, -1: none.
    is_protecting: arenas exist and the loop has begun on every rank, so a death is a failover.
    round: the newest failover, also after it is done.
    left_version: with what version all ranks left the newest loop; None while a loop runs.
    begun_from: the version on disk that it has begun from; -1: none.
    unfindable: versions with which a loop was left in a way that whoever runs the script again would not find.
    settings: with their origins, once the ranks have said what they are.
    resuming: the version on disk that all ranks begin from, until they do.
    kept: (folder, version) of the newest version on disk.  constants: rank -> file with the frozen state of its group.
    kinds: what state ranks hold.  kill_times: rank -> when an injected fault was about to kill it, wall clock, seconds.
    """

    def __init__(self, job: JobSpec, config: FailoverConfig, out: Outbox) -> None:
        self.job, self.config, self.out = job, config, out
        self.finished = False
        self.stopping = False
        self.restart = 0
        self.epoch = 0
        self.coverage = ""
        self.fired: set[int] = set()
        self.last_checkpoint: tuple[str, int] | None = None
        self.hangs = HangDetector(config.hang_timeout_s)
        self.members = Membership(job.world_size, job.nproc_per_node)
        self.serial = 1
        self.home = 0
        self.endpoint = ""
        self.line: dict[str, str] = {}
        self.may_restart = True
        self.quorum = Quorum()
        self._of_this_start()

    def _of_this_start(self) -> None:
        self.w = -1
        self.is_protecting = False
        self.round: FailoverRound | None = None
        self.left_version: int | None = None
        self.begun_from = -1
        self.unfindable: set[int] = set()
        self.settings: Settings | None = None
        self.resuming: Manifest | None = None
        self.kept: tuple[str, int] | None = None
        self.constants: dict[int, Part] = {}
        self.kinds = StateKinds()
        self.kill_times: dict[int, float] = {}

    def start_again(self) -> None:
        """The script starts anew on all ranks: what the old processes said and did is forgotten, nodes stay."""
        self.restart += 1
        self.epoch += 1  # what the old processes still say is dropped
        self.members = self.members.of_next_start(keep_failures=self.is_protecting)
        self._of_this_start()

    @property
    def settled(self) -> bool:
        """No failover is under way: commits count."""
        return self.round is None or self.round.step in (Step.RESUMED, Step.DONE)

    def may_decide(self) -> bool:
        """Nobody else can be the controller: W and verdicts may be given."""
        return self.quorum.holds(self.members.live_nodes())

    def constants_of(self, rank: int) -> str:
        """The file with the frozen state of the redundancy group of `rank`; "" if there is none."""
        group = next((group for group in self.kinds.groups if rank in group), frozenset(self.members.ranks))
        return next((part.file for writer, part in sorted(self.constants.items()) if writer in group), "")

    def lacks_holders(self) -> bool:
        """Some rank has fewer replicas than wanted, although there are nodes for more."""
        possible = min(self.config.replicas, len(self.members.places()) - 1)
        return any(len(rank.holders) < possible for rank in self.members.ranks.values())

    def has_left(self) -> bool:
        """Every rank was told to leave the training loop, and no other loop has committed anything since."""
        return self.left_version is not None and self.w <= self.left_version

    def injections_left(self) -> list[list[int | str]]:
        """[id, text] of the injections that have not fired yet."""
        return [[index, text] for index, text in enumerate(self.job.injections) if index not in self.fired]
