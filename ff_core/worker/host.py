"""What `ff_core.comm` needs of the process that it lives in, in a worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from ff_core.contract.activity import ACTIVITY_USER
from ff_core.worker.parts import WorkerParts

if TYPE_CHECKING:
    import torch.distributed as dist

    from ff_core.worker.collective import FollowedCollective


class _Asked(Protocol):
    """Of the session. Any thread may call them."""

    def verdict_timeout_s(self) -> float:
        """How long an operation that failed waits for a halt."""

    def collective_begins(self) -> FollowedCollective | None:
        """See CommHost."""


class WorkerHost:
    """`ff_core.comm.CommHost` for a worker."""

    def __init__(self, parts: WorkerParts, asked: _Asked) -> None:
        self._rank, self._link, self._page, self._fence = parts.rank, parts.link, parts.page, parts.fence
        self._asked = asked
        self._moved_to = parts.store

    @property
    def epoch(self) -> int:
        """See CommHost."""
        return self._fence.epoch

    def connect_store(self, timeout_s: float) -> dist.Store:
        """See CommHost: a connection to the store that some launcher hosts."""
        from datetime import timedelta

        import torch.distributed as dist

        from ff_core.comm.client import STORE_TIMEOUT_S

        store = dist.TCPStore(
            *self._store_at(),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
        store.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
        return store

    def store_is_at(self, host: str, port: int) -> bool:
        """See CommHost."""
        before, self._moved_to = self._store_at(), (host, port)
        return before != self._moved_to

    def _store_at(self) -> tuple[str, int]:
        return self._moved_to or (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))

    def halted(self) -> int | None:
        """See CommHost."""
        return self._fence.halted()

    def on_failure(self, error: BaseException, site: str) -> None:
        """A hint, never the verdict: raises FailoverInterrupt if a halt comes in time, else returns."""
        text = str(error).splitlines()[0][:500] if str(error) else repr(error)
        self._link.send("hint", rank=self._rank, text=text, site=site)
        self._fence.wait_halted(self._asked.verdict_timeout_s())
        self._fence.check()

    def enter(self, activity: int) -> None:
        """See CommHost."""
        self._page.store("activity", activity)
        self._page.store("progress", self._page.load("progress") + 1)

    def leave(self) -> None:
        """See CommHost."""
        self._page.store("activity", ACTIVITY_USER)

    def collective_begins(self) -> FollowedCollective | None:
        """See CommHost."""
        return self._asked.collective_begins()
