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


def fake_backend(rank: int, size: int, options: Any = None) -> Any:
    """A backend that talks to nobody, and completes every collective without doing anything."""
    fake = torch._C._distributed_c10d.FakeProcessGroup
    create: Any = getattr(fake, "_create_internal", fake)
    return create(rank, size) if options is None else create(rank, size, options)


def register_guard(group: dist.ProcessGroup, devices: list[str]) -> None:
    """Has torch's C++ refuse, with a RuntimeError, the collectives on `devices` that no method of `group` answers.

    The group still has a backend, which its name, hooks and conversions need.
    """
    base = dist.ProcessGroup
    # Of type CUSTOM: torch's C++ casts a backend of type GLOO to ProcessGroupGloo without looking.
    custom = base.BackendType.CUSTOM
    base._set_default_backend(group, custom)
    kind: Any = getattr(torch._C._distributed_c10d.FakeProcessGroup, "Options")  # noqa: B009  (typed in no version)
    options = kind()
    if hasattr(options, "error_on_collective"):
        options.error_on_collective = True
        guard = fake_backend(group.rank(), group.size(), options)
        for device in devices:
            base._register_backend(group, torch.device(device), custom, guard)
        return
    # In torch 2.9 the fake backend cannot refuse. There the devices get a type of which the group has no backend: C++
    # looks for one, finds none and says so. The fake one takes a device without collectives; last, as torch's set of
    # devices has an order.
    for device in devices:
        base._register_backend(group, torch.device(device), base.BackendType.UNDEFINED, None)
    base._register_backend(group, torch.device("meta"), custom, fake_backend(group.rank(), group.size()))


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


def device_of(group: Any) -> torch.device:
    """Where tensors must lie for collectives of `group` (None: all ranks) that carry no tensors of the trainer's."""
    whole: Any = dist.group.WORLD
    devices = (whole if group is None else group)._device_types
    if torch.device("cpu") in devices:
        return torch.device("cpu")
    return torch.device(devices[0].type, torch.cuda.current_device())
