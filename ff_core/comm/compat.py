"""Differences between versions of torch, in one place. Everything is detected by feature, nothing by version number."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

Work: type = c10d.Work
NO_TIMEOUT = timedelta(0)  # what torch passes for "no timeout given"
"""Collectives of `dist.ProcessGroup` that return a work handle and whose first argument holds the output tensors."""
OUTPUT_FIRST = frozenset(
    {
        "allreduce",
        "allreduce_coalesced",
        "broadcast",
        "reduce",
        "allgather",
        "_allgather_base",
        "all_gather_single",
        "all_gather_single_coalesced",
        "allgather_coalesced",
        "allgather_into_tensor_coalesced",
        "gather",
        "scatter",
        "reduce_scatter",
        "_reduce_scatter_base",
        "reduce_scatter_single",
        "reduce_scatter_single_coalesced",
        "reduce_scatter_tensor_coalesced",
        "alltoall",
        "alltoall_base",
        "all_to_all_single",
        "recv",
        "recv_anysource",
    }
)
POINT_TO_POINT = frozenset({"send", "recv", "recv_anysource"})
WORK_OPS = frozenset({name for name in OUTPUT_FIRST | {"send", "barrier"} if hasattr(dist.ProcessGroup, name)})

_TIMEOUT_WORDS = ("timed out", "timeout")


def is_timeout(error: BaseException) -> bool:
    """Whether `error` says that an operation ran out of time, rather than that a peer went away."""
    text = str(error).lower()
    return any(word in text for word in _TIMEOUT_WORDS)


def can_refuse() -> bool:
    """Whether `fake_backend` can refuse collectives (not in torch 2.9)."""
    return hasattr(getattr(torch._C._distributed_c10d.FakeProcessGroup, "Options", None), "error_on_collective")


def fake_backend(rank: int, size: int, *, refuse_collectives: bool) -> Any:
    """A backend that talks to nobody. `refuse_collectives`: raise on every collective, where torch can."""
    fake = torch._C._distributed_c10d.FakeProcessGroup
    create: Any = getattr(fake, "_create_internal", fake)
    if refuse_collectives and can_refuse():
        options: Any = getattr(fake, "Options")()  # noqa: B009  (typed in no version)
        options.error_on_collective = True
        return create(rank, size, options)
    return create(rank, size)


def group_name(name: str) -> Any:
    """`name` as torch's type for group names, which older torch does not have."""
    return getattr(c10d, "GroupName", str)(name)


def gloo_type() -> Any:
    """`ProcessGroupGloo`, or None in a build of torch without gloo."""
    return getattr(c10d, "ProcessGroupGloo", None) if c10d.is_gloo_available() else None


def nccl_type() -> Any:
    """`ProcessGroupNCCL`, or None in a build of torch without NCCL."""
    return getattr(c10d, "ProcessGroupNCCL", None) if c10d.is_nccl_available() else None


def gloo_device(interface: str | None) -> Any:
    """A gloo device (one listener, one event loop) that connects eagerly; None: the interface of this host's name.

    Eager, because a lazy connection to a peer that has died can hang.
    """
    gloo = gloo_type()
    try:
        if interface is not None:
            return gloo.create_device(interface=interface, lazy_init=False)
        return gloo.create_default_device(lazy_init=False)
    except TypeError:  # older torch has no lazy_init, and connects eagerly
        return gloo.create_device(interface=interface) if interface is not None else gloo.create_default_device()


def default_backend_type(backend: str, devices: dict[str, str]) -> Any:
    """The `BackendType` that torch's own group creation would make the default."""
    kinds = dist.ProcessGroup.BackendType
    if "," not in backend and ":" not in backend and backend != "undefined":
        return c10d.Backend.backend_type_map[backend]
    return kinds.NCCL if "nccl" in devices.values() else kinds.GLOO


def group_options_timeout(group: dist.ProcessGroup, device: str) -> timedelta | None:
    """The timeout now set on the backend of `device`, if it tells (the user may have changed it)."""
    try:
        return group._get_backend(torch.device(device)).options._timeout
    except (RuntimeError, AttributeError):
        return None
