"""Making a process's groups swappable: once, before torch.distributed is initialised."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import torch.distributed as dist

from ff_core.errors import UnsupportedError

from . import nccl
from .registry import GroupRegistry

if TYPE_CHECKING:
    from .host import CommHost

_installed: GroupRegistry | None = None
_at_fork_registered = False


def installed() -> GroupRegistry | None:
    """The registry of this process, if `install` was called."""
    return _installed if _installed is not None and not _installed.uninstalled else None


def install(host: CommHost, *, solo: bool, replay: bytes | None = None) -> GroupRegistry:
    """Makes every process group and default store of this process swappable, from now on.

    solo: initialise without communication (a newcomer).  replay: the dead rank's init journal; without one, collectives
    leave their local results. Raises UnsupportedError if torch.distributed is initialised already.
    """
    global _installed, _at_fork_registered
    if installed() is not None:
        raise UnsupportedError("ff_core.comm.install() was called twice in this process")
    if dist.is_initialized():
        raise UnsupportedError(
            "torch.distributed was initialised before failover was installed: start the job with `fftrain run`, or "
            "import the failover plugin before init_process_group()"
        )
    if replay is not None and not solo:
        raise UnsupportedError("an init journal is replayed in a solo process only")
    nccl.leave_errors_to_us()
    registry = GroupRegistry(host, solo=solo, replay=replay)
    registry.apply_patches()
    registry.client.connect_early()
    _installed = registry
    if not _at_fork_registered:
        os.register_at_fork(after_in_child=_forget_in_child)
        _at_fork_registered = True
    return registry


def _forget_in_child() -> None:
    registry = installed()
    if registry is not None:
        with contextlib.suppress(OSError):
            registry.forget_in_child()
