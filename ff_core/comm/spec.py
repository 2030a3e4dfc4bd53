"""What it takes to build one group's connections anew in any epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ff_core.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

SUPPORTED_BACKENDS = ("gloo", "nccl")


@dataclass(slots=True)
class GroupSpec:
    """One group as torch was asked for it.

    name: torch's id of the group, the same on every member.  key: unique over the life of the process too (a name comes
    again after `destroy_process_group`), and the same on every member.  ranks: global ranks, in group order.
    backend: the string the user gave.  devices: device type -> "gloo" or "nccl".  timeout: the user's.
    """

    name: str
    key: str
    rank: int
    size: int
    ranks: tuple[int, ...]
    backend: str
    devices: dict[str, str]
    timeout: timedelta
    options: Any = None
    bound_device: torch.device | None = None
    completion_hooks: list[Any] = field(default_factory=list)
    timed: bool = False

    @property
    def global_rank(self) -> int:
        """This process's rank in the job."""
        return self.ranks[self.rank]


def check_backends(backend: str, devices: dict[str, str]) -> None:
    """Raises UnsupportedError unless every part of `backend` can be connected anew after a failure."""
    for device, name in devices.items():
        if name not in SUPPORTED_BACKENDS:
            raise UnsupportedError(
                f"process group backend {backend!r} uses {name!r} for {device}: groups of that kind cannot be rebuilt "
                f"after a failure; use one of {', '.join(SUPPORTED_BACKENDS)}, or disable failover"
            )
