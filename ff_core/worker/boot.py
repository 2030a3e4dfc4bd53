"""What makes a process a worker: boot and shutdown around the user's script."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ff_core.contract.dispatch import Dispatch
from ff_core.contract.messages import AGENT_TO_WORKER, BEFORE_ROLE
from ff_core.copy.page import StatusPage
from ff_core.errors import ConfigError, DifferenceError, FailoverError, FailoverInterrupt, UnsupportedError
from ff_core.worker.host import WorkerHost
from ff_core.worker.parts import WorkerParts
from ff_core.worker.session import Session, current, set_current

if TYPE_CHECKING:
    from ff_core.contract.link import WorkerLink
    from ff_core.contract.messages import Message
    from ff_core.worker.engine import CopyEngine

#: What the training thread waits for.
_FOR_INBOX = ("arena", "go_on", "regroup", "may_leave", "slot_ready", "inject_ack")


def boot(link: WorkerLink, role: Message, fds: list[int]) -> Session:
    """Make this process a worker for `role`: descriptors are status page, eventfd and, for a newcomer, its arena."""
    page = StatusPage.from_fd(fds[0])
    parts = WorkerParts.for_role(link, role, page, fds[1])
    session = Session(parts, role, fds[2] if len(fds) > 2 else None)
    set_current(session)

    def halt(message: Message, descriptors: list[int]) -> None:
        session.halt(message["epoch"])
        for fd in descriptors:
            os.close(fd)

    inbox = dict.fromkeys(_FOR_INBOX, session.parts.inbox.put)
    dispatch = Dispatch(AGENT_TO_WORKER, {"halt": halt}, inbox, elsewhere=BEFORE_ROLE)

    def on_message(message: Message, descriptors: list[int]) -> None:
        dispatch.of(message)(message, descriptors)

    def on_gone() -> None:
        os._exit(1)  # the agent is gone, and with it this rank's protection and its place in the job

    link.serve(on_message, on_gone)
    page.hold_life()
    if session.early is not None:
        _pin(session.early)
    link.send("booted")
    for callback in _for_workers:
        callback()
    return session


def _pin(engine: CopyEngine) -> None:
    """Pin a newcomer's slots while its script builds the model: 12 GB take half a second. Only where a spare has made a
    context: the device is the rank's then."""
    warm_device = sys.modules.get("ff_core.worker.warm_device")
    device = warm_device.used(int(os.environ["LOCAL_RANK"])) if warm_device is not None else None
    if device is not None:
        engine.writer.prepare(device)


_for_workers: list[Callable[[], None]] = []


def when_worker(callback: Callable[[], None]) -> None:
    """Call `callback` if this process is a worker: now, or when it becomes one. A spare imports much before that."""
    if current() is not None:
        callback()
    elif callback not in _for_workers:
        _for_workers.append(callback)


def on_torch_distributed() -> None:
    """torch.distributed has been imported: every group made from now on is swappable. Idempotent.

    Called by the import hook, or by an adapter. Raises UnsupportedError if groups have been made already.
    """
    session = current()
    if session is None or session.registry is not None:
        return
    from ff_core import comm
    from ff_core.state import found, registered, switched
    from ff_core.worker import cores

    found.watch(registered.known)
    switched.watch()
    host = WorkerHost(session.parts, session)
    # What the dead rank's groups brought it while it started.
    journal = bytes(session.early.arena.journal()) if session.early is not None else None
    session.registry = comm.install(host, solo=session.is_newcomer, replay=journal)
    if session.is_newcomer:
        session.until_joined.enter_context(cores.in_parallel())


def shutdown(failure: BaseException | None) -> None:
    """The script has ended: with `failure`, or well. Says what an escaped interrupt means; joins all threads."""
    session = current()
    if session is None:
        return
    if failure is None:
        session.script_ended()
    if isinstance(failure, (UnsupportedError, ConfigError)):
        session.parts.link.send("give_up", rank=session.rank, reason=str(failure))
    elif isinstance(failure, DifferenceError) or (isinstance(failure, FailoverError) and session.is_newcomer):
        session.parts.link.send("unresumable", rank=session.rank, epoch=session.epoch, reason=str(failure))
    if isinstance(failure, FailoverInterrupt):
        where = "" if session.adapter is None else f" ({session.adapter.remedies.inside})"
        print(
            f"fftrain: rank {session.rank}: the job lost a rank while the script was outside the part that can be "
            "repeated, and this rank could not go back. Keep the collectives of training inside the loop that is "
            f"protected{where}.",
            file=sys.stderr,
            flush=True,
        )
    session.close()
    session.parts.page.release_life()
