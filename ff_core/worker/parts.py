"""What a worker has from its boot on, whatever it trains. The other parts of this package are made from these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ff_core.copy.page import StatusPage
from ff_core.worker.faults import Faults
from ff_core.worker.fence import Fence
from ff_core.worker.inbox import Inbox

if TYPE_CHECKING:
    from ff_core.contract.link import WorkerLink
    from ff_core.contract.messages import Message


@dataclass(frozen=True)
class WorkerParts:
    """One rank's place in the job, and what it talks through.

    rank, world_size: as torch counts them.  ranks_per_node: of every node.  secret: of the job, for data connections.
    may_restart: when a rank cannot be replaced, the whole script is started again (--max-restarts).
    link: to the agent; what the training thread waits for arrives in the inbox.
    store: (host, port) of torch's, if it is not where the environment says.
    page, notify_fd: shared with the agent: the status page, and the eventfd that says "look at it".
    """

    rank: int
    world_size: int
    ranks_per_node: int
    may_restart: bool
    secret: bytes
    link: WorkerLink
    inbox: Inbox
    page: StatusPage
    notify_fd: int
    fence: Fence
    faults: Faults
    store: tuple[str, int] | None = None

    @staticmethod
    def for_role(link: WorkerLink, role: Message, page: StatusPage, notify_fd: int) -> WorkerParts:
        """role: the message of that name, which made this process a rank."""
        inbox = Inbox()
        return WorkerParts(
            rank=role["rank"],
            world_size=role["world_size"],
            ranks_per_node=role["job"]["nproc_per_node"],
            may_restart=role["job"]["max_restarts"] > 0,
            secret=role["secret"],
            link=link,
            inbox=inbox,
            page=page,
            notify_fd=notify_fd,
            fence=Fence(page, role["epoch"]),
            store=(role["store"][0], role["store"][1]) if role.get("store") else None,
            faults=Faults(link, inbox, role["rank"], role["injections"]),
        )
