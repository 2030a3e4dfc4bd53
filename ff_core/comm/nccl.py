"""NCCL inner groups: named by the same factory as gloo's, aborted instead of cut at the socket.

A collective whose peer died never raises by itself: its kernel spins until the communicator is aborted. All of a
process's communicators are aborted together, because one after another can deadlock in NCCL.

Where it does notice (a connection to another host breaks), torch's watchdog would by default end this process, a
survivor: `leave_errors_to_us` forbids that. Whether somebody died, and who hangs, is for the job's controller to say.
"""

from __future__ import annotations

import copy
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from . import compat
from .spec import GroupSpec

#: Read by torch when an NCCL group is made. 0: report an error of a peer, do not end the process; do not throw a CUDA
#: error in the watchdog's thread, the training thread meets it; do not take a watchdog that an abort holds up for hung.
_SETTINGS = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}

#: This process has an NCCL group. torch names the process after its rank in the first one, in messages and dumps.
made = threading.Event()


def leave_errors_to_us() -> None:
    """Before the process makes its first group. What the user has set is left alone."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def build(spec: GroupSpec, store: dist.Store) -> Any:
    """A `ProcessGroupNCCL`, never split from an older one: what it was split from may be aborted."""
    nccl = compat.nccl_type()
    if nccl is None:
        raise RuntimeError(f"process group {spec.name!r} asks for NCCL, and this build of torch has none")
    options = copy.deepcopy(spec.options) if isinstance(spec.options, nccl.Options) else nccl.Options()
    options._timeout = spec.timeout
    options.split_from = None
    options.global_ranks_in_group = list(spec.ranks)
    options.group_name = spec.name
    if hasattr(options, "config"):
        options.config.blocking = 0  # so that connecting can be aborted too
    backend = nccl(store, spec.rank, spec.size, options)
    made.set()
    backend._set_sequence_number_for_group()
    if spec.bound_device is not None and spec.bound_device.type == "cuda":
        backend.eager_connect_single_device(spec.bound_device)
    return backend


def is_in(spec: GroupSpec) -> bool:
    """Whether NCCL carries any of the operations of groups made to `spec`."""
    return "nccl" in spec.devices.values()


def has_part_in(group: dist.ProcessGroup) -> bool:
    """Whether NCCL carries any of the group's operations."""
    return _backend(group) is not None


def abort(groups: list[dist.ProcessGroup]) -> None:
    """Aborts every NCCL communicator of `groups`, all at the same time. Any thread; returns after half a second."""
    backends = [backend for backend in map(_backend, groups) if backend is not None]
    if not backends:
        return
    with ThreadPoolExecutor(max_workers=len(backends), thread_name_prefix="ff-abort") as pool:
        list(pool.map(lambda backend: backend.abort(), backends))


def shut_down(group: dist.ProcessGroup) -> None:
    """Ends the NCCL communicators of `group` in order, if it has any: every member does, and nothing is pending."""
    backend = _backend(group)
    if backend is not None:
        backend.shutdown()


def _backend(group: dist.ProcessGroup) -> Any:
    """The `ProcessGroupNCCL` in `group`, or None."""
    nccl = compat.nccl_type()
    if nccl is None:
        return None
    try:
        backend = group._get_backend(torch.device("cuda"))
    except RuntimeError:  # this group has none
        return None
    return backend if isinstance(backend, nccl) else None
