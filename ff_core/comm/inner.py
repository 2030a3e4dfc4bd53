"""The one factory of inner groups: a plain `dist.ProcessGroup` with the backends a `GroupSpec` names."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from . import compat, nccl
from .client import RendezvousStore
from .sockets import GroupSockets
from .spec import GroupSpec


def build_inner(
    spec: GroupSpec,
    store: RendezvousStore,
    sockets: GroupSockets,
    connect_timeout: timedelta,
    native_store: Callable[[], dist.Store],
) -> dist.ProcessGroup:
    """Connects the group `spec` through `store` (fresh keys only). Blocks until all members are connected.

    connect_timeout: for connecting; afterwards the user's timeout is set.  native_store: opens a connection without
    Python in it, for NCCL, whose threads keep using it. Raises RuntimeError as torch does.
    """
    group = dist.ProcessGroup(store, spec.rank, spec.size)
    group._set_default_backend(compat.default_backend_type(spec.backend, spec.devices))
    kinds = dist.ProcessGroup.BackendType
    built: dict[str, Any] = {}
    for device, name in spec.devices.items():
        backend = built.get(name)
        if backend is None:
            if name == "gloo":
                backend = _gloo(spec, dist.PrefixStore("gloo/", store), sockets, connect_timeout)
            else:
                backend = nccl.build(spec, dist.PrefixStore(f"{store.prefix}/nccl/", native_store()))
            built[name] = backend
        group._register_backend(torch.device(device), kinds.GLOO if name == "gloo" else kinds.NCCL, backend)
    group._set_group_name(compat.group_name(spec.name))
    if spec.bound_device is not None:
        group.bound_device_id = spec.bound_device
    for hook in spec.completion_hooks:
        group._register_on_completion_hook(hook)  # type: ignore[attr-defined]
    if spec.timed:
        group._enable_collectives_timing()  # type: ignore[attr-defined]
    return group


def _gloo(spec: GroupSpec, store: dist.Store, sockets: GroupSockets, connect_timeout: timedelta) -> Any:
    gloo = compat.gloo_type()
    options = gloo._Options()
    options._devices = sockets.devices()
    options._threads = 2 * len(options._devices)  # as torch chooses
    options._timeout = connect_timeout
    options.group_name = spec.name
    options.global_ranks_in_group = list(spec.ranks)
    backend = gloo(store, spec.rank, spec.size, options)
    backend._set_default_timeout(spec.timeout)
    backend._set_sequence_number_for_group()
    return backend
