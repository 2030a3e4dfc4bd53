"""What makes a process a worker: boot and shutdown around the user's script, and the host that `ff_core.comm` needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ff_core.contract.activity import ACTIVITY_USER
from ff_core.copy.page import StatusPage
from ff_core.errors import FailoverError, FailoverInterrupt
from ff_core.worker import session as failover_module
from ff_core.worker.session import Failover

if TYPE_CHECKING:
    import torch.distributed as dist

    from ff_core.contract.link import WorkerLink
    from ff_core.contract.messages import Message
    from ff_core.worker.collective import FollowedCollective

_LINK_MESSAGES = frozenset(("arena", "verdict", "regroup", "may_leave", "slot_ready", "inject_ack"))


class Host:
    """`ff_core.comm.CommHost` for a worker."""

    def __init__(self, owner: Failover) -> None:
        self._owner = owner

    @property
    def epoch(self) -> int:
        """See CommHost."""
        return self._owner.epoch

    def connect_store(self, timeout_s: float) -> dist.Store:
        """See CommHost: a connection to the store that the launcher hosts."""
        from datetime import timedelta

        import torch.distributed as dist

        from ff_core.comm.client import STORE_TIMEOUT_S

        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
        store.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
        return store

    def halted(self) -> int | None:
        return self._owner.fence.halted()

    def on_failure(self, error: BaseException, site: str) -> None:
        """A hint, never the verdict: raises FailoverInterrupt if a halt comes in time, else returns."""
        owner = self._owner
        owner.link.send(
            "hint", rank=owner.rank, text=str(error).splitlines()[0][:500] if str(error) else repr(error), site=site
        )
        if owner.training or owner.is_newcomer:
            owner.fence.wait_halted(owner.config.verdict_timeout_s)
        owner.fence.check()

    def enter(self, activity: int) -> None:
        page = self._owner.page
        page.store("activity", activity)
        page.store("progress", page.load("progress") + 1)

    def leave(self) -> None:
        self._owner.page.store("activity", ACTIVITY_USER)

    def collective_begins(self) -> FollowedCollective | None:
        """See CommHost."""
        replicator = self._owner.replicator
        return None if replicator is None else replicator.collective_begins()


def boot(link: WorkerLink, role: Message, fds: list[int]) -> Failover:
    """Make this process a worker for `role`: descriptors are status page, eventfd and, for a newcomer, its arena."""
    page = StatusPage.from_fd(fds[0])
    owner = Failover(link, role, page, fds[1])
    failover_module.set_current(owner)
    _boot_journal.clear()
    if len(fds) > 2:
        from ff_core.copy.arena import Arena

        arena = Arena.from_fd(fds[2])
        _boot_journal.append(bytes(arena.journal()))
        arena.close()

    def on_message(message: Message, descriptors: list[int]) -> None:
        if message["t"] == "halt":
            owner.halt(message["epoch"])
        elif message["t"] in _LINK_MESSAGES:
            owner.inbox.put(message, descriptors)
            return
        for fd in descriptors:
            os.close(fd)

    def on_gone() -> None:
        os._exit(1)  # the agent is gone, and with it this rank's protection and its place in the job

    link.serve(on_message, on_gone)
    page.hold_life()
    link.send("booted")
    for callback in _for_workers:
        callback()
    return owner


_boot_journal: list[bytes] = []
_for_workers: list[Callable[[], None]] = []


def when_worker(callback: Callable[[], None]) -> None:
    """Call `callback` if this process is a worker: now, or when it becomes one. A spare imports much before that."""
    if failover_module.current() is not None:
        callback()
    elif callback not in _for_workers:
        _for_workers.append(callback)


def on_torch_distributed() -> None:
    """torch.distributed has been imported: every group made from now on is swappable. Idempotent.

    Called by the import hook, or by an adapter. Raises UnsupportedError if groups have been made already.
    """
    owner = failover_module.current()
    if owner is None or owner.registry is not None:
        return
    from ff_core import comm

    replay = _boot_journal[0] if _boot_journal else None
    owner.registry = comm.install(Host(owner), solo=owner.is_newcomer, replay=replay)


def shutdown(failure: BaseException | None) -> None:
    """The script has ended: with `failure`, or well. Says what an escaped interrupt means; joins the engine's
    threads."""
    owner = failover_module.current()
    if owner is None:
        return
    if failure is None:
        owner.script_ended()
    if isinstance(failure, FailoverError) and owner.is_newcomer:
        owner.link.send("unresumable", rank=owner.rank, epoch=owner.epoch, reason=str(failure))
    if isinstance(failure, FailoverInterrupt):
        print(
            f"fftrain: rank {owner.rank}: the job lost a rank while the script was outside the part that can be "
            "repeated, and this rank could not go back. Keep the collectives of training inside the loop that is "
            "protected (with DeepSpeed's exact loop: inside `with ff_deepspeed.iteration():`).",
            file=sys.stderr,
            flush=True,
        )
    owner.close()
    owner.page.release_life()
