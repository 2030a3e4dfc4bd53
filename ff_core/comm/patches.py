"""The places where torch is patched, all of them, and how to undo it.

Group creation goes through torch's own code, with our backend in the place of the one asked for. Afterwards torch's
books are put as if nothing had been replaced. So `get_backend()` and friends answer as without us.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.distributed import distributed_c10d as c10d

from ff_core.errors import judged

from .bodies import Bodies
from .client import STORE_TIMEOUT_S
from .era import Era
from .group import SwappableGroup
from .spec import GroupSpec, check_backends

if TYPE_CHECKING:
    from .journal import Journal
    from .late import LateGroups
    from .listener import Listener
    from .store import SwappableStore

_log = logging.getLogger("ff_core.comm")
_NAME = "ff"  # of the backend that stands in during creation; never visible outside


class Maker(Era, Protocol):
    """The registry, as far as torch's own code is led to it."""

    @property
    def late(self) -> LateGroups: ...

    @property
    def journal(self) -> Journal: ...

    @property
    def listener(self) -> Listener | None: ...

    def new_key(self, name: str) -> str:
        """A key for a group that torch calls `name`."""

    def new_store(self, timeout: timedelta) -> SwappableStore:
        """The store of the next rendezvous."""

    def add_group(self, spec: GroupSpec, store: torch.distributed.Store) -> SwappableGroup:
        """Makes and connects a group."""


class Patches:
    """Applied by `apply`, taken back by `undo`."""

    def __init__(self, registry: Maker) -> None:
        self._registry = registry
        self._saved: list[tuple[Any, str, Any]] = []
        self._creating = threading.local()
        self._bodies = Bodies()
        self.new_group_with_tag: Callable[..., Any] = c10d._new_group_with_tag

    def apply(self) -> None:
        c10d.Backend.register_backend(_NAME, self._create, extended_api=True, devices=["cpu", "cuda"])
        self._set(c10d, "_new_process_group_helper", self._helper(c10d._new_process_group_helper))
        self.new_group_with_tag = c10d._new_group_with_tag
        self._set(c10d, "_new_group_with_tag", self._late(c10d._new_group_with_tag))
        rendezvous = importlib.import_module("torch.distributed.rendezvous")  # the name alone is a function
        self._set(rendezvous, "_create_c10d_store", self._store(rendezvous._create_c10d_store))
        self._set(rendezvous, "FileStore", self._file_store)
        self._bodies.replace(c10d.batch_isend_irecv, self._batched)
        self._bodies.replace(c10d.destroy_process_group, self._destroy)
        for name in ("broadcast_object_list", "scatter_object_list"):
            self._bodies.replace(getattr(c10d, name), self._from_source)
        backward = self._backward(torch.autograd.graph._engine_run_backward)
        self._set(torch.autograd.graph, "_engine_run_backward", backward)
        self._set(torch.autograd, "_engine_run_backward", backward)
        for name in ("wait", "value"):
            self._set(torch._C.Future, name, self._future(getattr(torch._C.Future, name)))

    def undo(self) -> None:
        for owner, name, value in reversed(self._saved):
            setattr(owner, name, value)
        self._saved.clear()
        self._bodies.undo()
        c10d.Backend._plugins.pop(_NAME.upper(), None)
        if _NAME in c10d.Backend.backend_list:
            c10d.Backend.backend_list.remove(_NAME)
        if hasattr(c10d.Backend, _NAME.upper()):
            delattr(c10d.Backend, _NAME.upper())
        c10d.Backend.backend_capability.pop(_NAME, None)
        c10d.Backend.backend_type_map.pop(_NAME, None)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    # ---- group creation -----------------------------------------------------------------------------------------

    def _helper(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def helper(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs)
            backend = str(call.arguments["backend"])
            config = c10d.BackendConfig(c10d.Backend(backend))
            devices = {str(device): str(name) for device, name in config.get_device_backend_map().items()}
            if set(devices.values()) == {"fake"}:  # talks to nobody: nothing to swap
                return original(*args, **kwargs)
            check_backends(backend, devices)
            if torch.distributed.get_debug_level() == torch.distributed.DebugLevel.DETAIL:
                _log.warning("TORCH_DISTRIBUTED_DEBUG=DETAIL: its checks of collectives do not work with failover")
            ranks = call.arguments["global_ranks_in_group"]
            # Torch would let non-members take part in a communicator split; our groups are never split off.
            if len(ranks) and c10d._get_default_group().rank() not in ranks:
                return c10d.GroupMember.NON_GROUP_MEMBER, None
            self._creating.call = (backend, devices, call.arguments)
            call.arguments["backend"] = c10d.Backend(_NAME)
            try:
                group, store = original(*call.args, **call.kwargs)
            finally:
                self._creating.call = None
            c10d._world.pg_map[group] = (c10d.Backend(backend), store)
            c10d._world.pg_backend_config[group] = str(config)
            device = call.arguments.get("device_id")
            if device is not None:
                group.bound_device_id = device
            return group, store

        return helper

    def _create(self, options: Any, backend_options: Any) -> SwappableGroup:
        backend, devices, arguments = self._creating.call
        name = str(options.group_id)
        spec = GroupSpec(
            name=name,
            key=self._registry.new_key(name),
            rank=options.group_rank,
            size=options.group_size,
            ranks=tuple(options.global_ranks_in_group) or tuple(range(options.group_size)),
            backend=backend,
            devices=devices,
            timeout=options.timeout,
            options=backend_options,
            bound_device=arguments.get("device_id"),
        )
        return self._registry.add_group(spec, options.store)

    def _late(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def new_group_with_tag(*args: Any, **kwargs: Any) -> Any:
            return self._registry.late.create(original, dict(signature.bind(*args, **kwargs).arguments))

        return new_group_with_tag

    def _store(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def create_store(
            hostname: str, port: int, rank: int, world_size: int, timeout: Any, use_libuv: bool = True
        ) -> Any:
            return self._registry.new_store(timeout)

        return create_store

    def _file_store(self, path: str, world_size: int) -> Any:
        """The store of `file://`. A file keeps what an older generation wrote; the job's own store does not."""
        return self._registry.new_store(timedelta(seconds=STORE_TIMEOUT_S))

    # ---- operations ---------------------------------------------------------------------------------------------

    def _batched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """torch coalesces batches only in groups whose type is exactly ProcessGroup; NCCL would deadlock without."""

        @functools.wraps(original)
        def batch_isend_irecv(p2p_op_list: list[Any]) -> list[Any]:
            c10d._check_p2p_op_list(p2p_op_list)
            group = p2p_op_list[0].group or c10d._get_default_group()
            device = p2p_op_list[0].tensor.device
            if not isinstance(group, SwappableGroup) or not group._get_backend(device).supports_coalescing:
                return original(p2p_op_list)
            with c10d._coalescing_manager(group, device, async_ops=True) as manager:
                for op in p2p_op_list:
                    peer = "group_dst" if op.op is c10d.isend else "group_src"
                    op.op(op.tensor, group=op.group, tag=op.tag, **{peer: op.group_peer})
            return manager.works

        return batch_isend_irecv

    def _destroy(self, original: Callable[..., Any]) -> Callable[..., Any]:
        registry = self._registry

        @functools.wraps(original)
        def destroy_process_group(group: Any = None) -> None:
            if registry.listener is not None and (group is None or group is c10d.GroupMember.WORLD):
                registry.listener.leaving()
            original(group)

        return destroy_process_group

    def _from_source(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The source of an object collective keeps its own objects; a replacement of it takes the journal's.

        It makes the call as if another rank were the source: its own objects reach nobody, the journal has the results.
        """
        signature, registry = inspect.signature(original), self._registry

        @functools.wraps(original)
        def object_collective(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs)
            group = call.arguments.get("group") or c10d._get_default_group()
            if registry.solo and registry.journal.replaying and isinstance(group, SwappableGroup) and group.size() > 1:
                call.arguments["src"] = None
                call.arguments["group_src"] = (group.rank() + 1) % group.size()
            return original(*call.args, **call.kwargs)

        return object_collective

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A work that C++ waits for (DDP's reducer) surfaces here, as a RuntimeError."""
        registry = self._registry

        def judge(failure: Exception) -> None:
            if isinstance(failure, RuntimeError) and (registry.over or registry.noted is not None):
                registry.failed(failure, None)

        @functools.wraps(original)
        def run_backward(*args: Any, **kwargs: Any) -> Any:
            return judged(lambda: original(*args, **kwargs), judge)

        return run_backward

    def _future(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """torch turns what a future's callback raises into a RuntimeError; give Python callers the interrupt back."""
        registry = self._registry

        def judge(failure: Exception) -> None:
            if not isinstance(failure, RuntimeError):
                return
            if "FailoverInterrupt" in str(failure):
                raise registry.interrupt()
            if registry.noted is not None:
                registry.failed(failure, None)

        @functools.wraps(original)
        def result(future: Any) -> Any:
            return judged(lambda: original(future), judge)

        return result
