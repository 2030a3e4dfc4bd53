"""NCCL inner groups: named by the same factory as gloo's, aborted instead of cut at the socket.

A collective whose peer died never raises by itself: its kernel spins until the communicator is aborted. All of a
process's communicators are aborted together, because one after another can deadlock in NCCL.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from . import compat
from .spec import GroupSpec


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
    backend._set_sequence_number_for_group()
    if spec.bound_device is not None and spec.bound_device.type == "cuda":
        backend.eager_connect_single_device(spec.bound_device)
    return backend


def is_in(spec: GroupSpec) -> bool:
    """Whether NCCL carries any of the group's operations."""
    return "nccl" in spec.devices.values()


def abort(groups: list[dist.ProcessGroup]) -> int:
    """Aborts every NCCL communicator of `groups`, all at the same time; returns how many. Any thread."""
    nccl = compat.nccl_type()
    if nccl is None:
        return 0
    cuda = torch.device("cuda")
    backends = []
    for group in groups:
        try:
            backend = group._get_backend(cuda)
        except RuntimeError:  # this group has none
            continue
        if isinstance(backend, nccl):
            backends.append(backend)
    if not backends:
        return 0
    with ThreadPoolExecutor(max_workers=len(backends), thread_name_prefix="ff-abort") as pool:
        list(pool.map(lambda backend: backend.abort(), backends))
    return len(backends)
