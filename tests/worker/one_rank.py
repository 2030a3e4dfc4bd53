"""A real session of a job with one rank, whose agent and controller are a few lines in this process.

Page, arena, slots and copy engine are the product's. There are no groups: what a session asks of them does nothing.
"""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

from ff_core.comm.whole import WholeGroup
from ff_core.contract.job import JobSpec
from ff_core.contract.stamps import version_of
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.page import StatusPage
from ff_core.worker.parts import WorkerParts
from ff_core.worker.session import Session
from tests.worker.one_job import OneJob


class OneRank(OneJob):
    """arena: of the rank that a newcomer replaces, with a complete slot of epoch 0. Without it the job begins.
    interval, pause: what the rank is told with W from now on; may change.
    let: while it is not set, nothing is committed everywhere."""

    def __init__(self, arena: Arena | None = None, interval: int = 1) -> None:
        super().__init__(arena, interval)
        self.pause = 0
        self.let = threading.Event()
        self.let.set()
        self._newcomer = arena is not None
        self._page, self._bell = StatusPage.create(), os.eventfd(0)
        role = {
            "t": "role", "rank": 0, "world_size": 1, "epoch": int(self._newcomer), "newcomer": self._newcomer,
            "secret": b"", "injections": [], "entrypoint": ["train.py"],
            "job": JobSpec(["train.py"], 1, 1, "127.0.0.1", 1).to_wire(),
        }  # fmt: skip
        link: Any = SimpleNamespace(send=lambda name, fds=(), **fields: self.heard(name, **fields))
        self.session = Session(WorkerParts.for_role(link, role, self._page, self._bell), role)
        nothing: Any = SimpleNamespace(
            halt=lambda epoch: None, wait_quiet=lambda epoch: None, drop=lambda: None, regroup=lambda epoch: None,
            give_back=lambda: None, freeze_journal=lambda state: b"", late_groups=list,
            make_late_groups=lambda groups: None, client=SimpleNamespace(close=lambda: None), close=lambda: None,
            whole=WholeGroup(),
        )  # fmt: skip
        self.session.registry = nothing
        self._over = False
        self._clerk = threading.Thread(target=self._publish)
        self._clerk.start()
        if self._newcomer:
            self.decide({"version": -1, "sealed": False})

    def _publish(self) -> None:
        """What the rank has committed is committed everywhere."""
        while os.eventfd_read(self._bell) and self.let.wait() and not self._over:
            self._page.store("interval", self.interval)
            self._page.store("pause", self.pause)
            self._page.store("w_stamp", self._page.load("committed"))
            self._page.notify()

    @property
    def epoch(self) -> int:
        """From the page: a recovery puts back what the script's own objects have, and this rank counts as one."""
        return max(int(self._newcomer), self._page.load("halt_epoch"))

    def lose(self) -> None:
        """A rank of the job dies."""
        epoch = self.epoch + 1
        self._page.store("halt_epoch", epoch)
        self._page.notify()
        self.session.halt(epoch)

    def make_arena(self, **sizes: int) -> Arena:
        return Arena.create(ArenaLayout(0, **sizes, journal_capacity=4096, chunk_bytes=4096))

    def tell(self, name: str, arena: Arena | None = None, **fields: Any) -> None:
        self.session.parts.inbox.put({"t": name, **fields}, [] if arena is None else [os.dup(arena.fd)])

    @property
    def w(self) -> int:
        """Newest version that is committed."""
        return version_of(self._page.load("w_stamp"))

    def close(self) -> None:
        self.session.close()
        self._over = True
        self.let.set()
        os.eventfd_write(self._bell, 1)
        self._clerk.join()
        os.close(self._bell)
        self._page.close()
