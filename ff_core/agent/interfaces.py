"""What an agent's parts know of its processes and of its data port, and what the data port knows of the agent.

`workers`, `data_port` and `agent` are these for real; the simulator of the tests has others.
"""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ff_core.copy.arena import Arena
from ff_core.copy.transports import StreamChoice


class Page(Protocol):
    """A worker's status page."""

    @abstractmethod
    def load(self, word: str) -> int:
        """Value of a word; 0 if nobody has stored one."""

    @abstractmethod
    def store(self, word: str, value: int) -> None:
        """Set a word, 0 to 2**64 - 1."""

    @abstractmethod
    def notify(self) -> None:
        """Wake who waits for a word."""


class Process(Protocol):
    """An operating system's process, with all its descendants."""

    pid: int

    @abstractmethod
    def set_rank(self, rank: int) -> None:
        """The spare becomes `rank`: its lines and logs are that rank's from now on. Raises OSError (log file)."""

    @abstractmethod
    def tail(self, n: int) -> list[str]:
        """The last `n` lines of its stderr."""

    @abstractmethod
    def still(self, *, moved: bool) -> tuple[float, bool]:
        """(seconds for which it and its descendants have done nothing, whether it is stopped). moved: it has made
        progress since the last call."""

    @abstractmethod
    async def stacks(self, *, let_go: bool) -> str:
        """Where its threads are, or why that cannot be told. let_go: if it is stopped it goes on, to answer."""

    @abstractmethod
    def kill_group(self, sig: int) -> None:
        """Send `sig` to it and its descendants; nothing happens if they are gone."""


class RankProcess(Protocol):
    """A process that plays a rank, or a spare (rank -1).

    booted: it serves the link, so it can answer a halt.
    asked: the epoch of the last halt it was sent.  halted: the epoch it confirmed.
    dying: its own code runs no more; the kernel is not through with it.
    since: the epoch in which it got its rank.  restored: it is no newcomer, or none any more.
    is_ready: a spare that has imported everything.
    stuck: dying, and for so long that nobody waits for its end any more.  gone: its end has been seen.
    """

    uid: str
    rank: int
    page: Page
    process: Process
    booted: bool
    asked: int | None
    halted: int | None
    since: int
    restored: bool
    is_ready: bool
    dying: bool
    stuck: bool
    gone: bool

    @abstractmethod
    def send(self, name: str, fds: tuple[int, ...] = (), **fields: Any) -> None:
        """A message for the process. What one without a role cannot understand yet follows its role. Descriptors stay
        the caller's."""

    @abstractmethod
    def watch(self) -> None:
        """It has booted: its death is noticed before its end from now on."""


class WorkerPool(Protocol):
    """All processes of a node.

    restart: how often the script was started again.
    settings: the job's (Settings.to_wire()), for roles given from now on.
    store: [host, port] of torch's store, if it is not where the job began.
    """

    by_uid: Mapping[str, RankProcess]
    restart: int
    settings: dict[str, Any]
    store: list[Any] | None

    @abstractmethod
    def of_rank(self, rank: int) -> RankProcess | None:
        """Who plays `rank`: not a dying one."""

    @abstractmethod
    def ranks(self) -> Sequence[RankProcess]:
        """Those that play a rank, dying ones too."""

    @abstractmethod
    def spares(self) -> Sequence[RankProcess]:
        """Those that play none."""

    @abstractmethod
    async def spawn(self, uid: str, rank: int) -> RankProcess:
        """Start a process; for a spare rank is -1. It gets no role yet."""

    @abstractmethod
    def promote(self, spare: RankProcess, rank: int) -> None:
        """A spare becomes `rank`, and is told so: its role may have to wait."""

    @abstractmethod
    def give_role(
        self, worker: RankProcess, rank: int, *, epoch: int, newcomer: bool, injections: list[Any], arena: Arena | None
    ) -> None:
        """Tell a process which rank it plays; a newcomer gets the arena whose journal it will replay."""

    @abstractmethod
    async def end_all(self, grace_s: float, signum: int = signal.SIGTERM) -> None:
        """`signum`, then SIGKILL after grace_s; returns when all are reaped. Spares have nothing to save."""


class PortOwner(Protocol):
    """Whose data port it is."""

    @abstractmethod
    def arena_for(self, hello: dict[str, Any]) -> Arena:
        """The arena that a verified peer may write. Raises ProtocolError."""

    @abstractmethod
    def data_arrived(self) -> None:
        """A journal or a version came in."""


class Port(Protocol):
    """A node's data port. retired_before: connections of older epochs are closed and joined."""

    retired_before: int

    @abstractmethod
    def set_owner(self, owner: PortOwner) -> None:
        """Once, before anybody can connect with success."""

    @abstractmethod
    def share(self, transport: str, emulated: bool, streams: StreamChoice) -> None:
        """The job's choice of transport and streams for what this agent sends and of threads that copy here, and shared
        memory for other nodes of this host where that allows it. May come again. Raises OSError, or ConfigError for a
        transport that is not here."""

    @abstractmethod
    def enter_epoch(self, epoch: int) -> None:
        """The verdict is carried out: connections of `epoch` are welcome from now on, older ones are refused."""

    @abstractmethod
    async def retire_before(self, epoch: int) -> None:
        """A halt: close every connection, in and out, of epochs before `epoch`. Afterwards no arena changes."""

    @abstractmethod
    async def quiet(self) -> None:
        """End what is being sent; afterwards nobody reads an arena."""

    @abstractmethod
    def send(
        self, order: dict[str, Any], arena: Arena, epoch: int, version: int, failed: Callable[[str], None]
    ) -> None:
        """Stream slot (epoch, version) and the journal of `arena` to the agent named in `order`; failures of this
        epoch are reported."""
