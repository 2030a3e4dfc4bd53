"""What the communication layer needs from the process it lives in.

`ff_core.worker.host` implements `CommHost` in a worker; tests implement it with a few lines. Nothing here knows how
a failure is detected or how the verdict arrives.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_USER

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["ACTIVITY_COLLECTIVE", "ACTIVITY_USER", "Collective", "CommHost"]


class Collective(Protocol):
    """One that a device runs by itself, some time after it was launched. It is in flight from its beginning to its end,
    each where a stream comes to it."""

    def end(self) -> None:
        """The calling thread's current stream has it behind itself; called again, nothing."""

    def forget(self) -> None:
        """It is over, or nobody will know when."""


class CommHost(Protocol):
    """The process around the groups. Every method may be called from any thread."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Membership epoch this process belongs to; groups created now carry it."""

    @abstractmethod
    def connect_store(self, timeout_s: float) -> dist.Store:
        """A new client connection to the job's key-value store; raises if there is none within timeout_s.

        New on every call: a client is busy for everybody while one thread blocks in `wait` on it.
        """

    @abstractmethod
    def store_is_at(self, host: str, port: int) -> bool:
        """The job's store is there from now on, if it was not there before: returns whether it has moved."""

    @abstractmethod
    def halted(self) -> int | None:
        """The epoch that a halt announced and that has not been regrouped yet, or None."""

    @abstractmethod
    def on_failure(self, error: BaseException, site: str) -> None:
        """An operation raised `error` at `site` although nothing is halted yet.

        Waits a bounded time for a verdict: raises `FailoverInterrupt` if a halt comes, returns otherwise.
        """

    @abstractmethod
    def enter(self, activity: int) -> None:
        """A collective begins (or a wait for one): `activity` is `ACTIVITY_COLLECTIVE`. Must be cheap."""

    @abstractmethod
    def leave(self) -> None:
        """The collective or the wait is over, with or without an error."""

    @abstractmethod
    def collective_begins(self) -> Collective | None:
        """One that a device will run comes next on the current stream. None: nobody wants to know. Must be cheap."""
