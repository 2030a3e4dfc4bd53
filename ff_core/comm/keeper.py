"""`Keeper`: the registry of a process's groups, as far as a group asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .era import Era

if TYPE_CHECKING:
    import torch.distributed as dist

    from .barrier import BarrierDevices
    from .group import SwappableGroup
    from .journal import Journal
    from .listener import Listener
    from .spec import GroupSpec
    from .whole import WholeGroup


class Keeper(Era, Protocol):
    """The registry, as far as a group asks it."""

    @property
    def journal(self) -> Journal: ...

    @property
    def barriers(self) -> BarrierDevices: ...

    @property
    def whole(self) -> WholeGroup: ...

    @property
    def listener(self) -> Listener | None: ...

    def new_key(self, name: str) -> str:
        """A key for a group that torch calls `name`: unique in this process, the same on all members."""

    def add_group(self, spec: GroupSpec, store: dist.Store) -> SwappableGroup:
        """Makes and connects a group. Raises FailoverInterrupt while halted, and RuntimeError as torch does."""

    def connect(self, group: SwappableGroup) -> None:
        """Connects `group`, whose other members may only now have it too."""

    def close_group(self, group: SwappableGroup) -> None:
        """The user destroyed `group`: it is closed now and never built again."""
