"""`SwappableGroup`: a group object that frameworks may keep for ever, over connections that each epoch replaces.

It is a subclass of `dist.ProcessGroup` whose every method is one of: answered here, forwarded to the inner group of the
current generation, or refused. The C++ base holds a guard that refuses collectives, so that an operation which is not
overridden cannot be lost silently. Methods that a newer torch adds are refused until they are classified here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ff_core.errors import judged

from . import compat, inputs, listener, nccl, surface, waiting
from .coalescing import Block, forget_torchs
from .host import ACTIVITY_COLLECTIVE, Collective
from .keeper import Keeper
from .solo import SoloGroup, flatten
from .spec import GroupSpec
from .work import SwappableWork, Waits

if TYPE_CHECKING:
    from .builder import Batch
    from .generation import Generation


class SwappableGroup(dist.ProcessGroup):
    """See the module. `spec`: what it is; `generation`: its current generation, None while there is none."""

    def __init__(self, registry: Keeper, spec: GroupSpec, store: dist.Store) -> None:
        super().__init__(spec.rank, spec.size)  # type: ignore[call-arg]
        self._store = store
        self.registry = registry
        self.spec = spec
        self.generation: Generation | None = None
        self.closed = False
        self.deferred = False  # regroup() does not wait for it: other members may not have it
        self.pending: Batch | None = None  # of a deferred group, in the background
        self._block: Block | None = None
        self.gathered: listener.Gathered | None = None  # of the script, which the listener makes as one operation
        compat.register_guard(self, list(spec.devices))

    # ---- identity -----------------------------------------------------------------------------------------------

    def getBackendName(self) -> str:
        """For torch's C++ only, which would cast the backend of a group that it believes to be gloo's."""
        return "ff"

    @property
    def _device_types(self) -> list[torch.device]:
        """The devices that the group's backends carry; the guard may be registered for another one."""
        return [device for device in super()._device_types if device.type in self.spec.devices]

    def name(self) -> str:
        """The backend's name, as if the group were not swappable."""
        return "nccl" if nccl.is_in(self.spec) else "gloo"

    def get_group_store(self) -> dist.Store:
        """The default store under this group's prefix."""
        return self._store

    def _get_backend_name(self) -> str:
        return self.name()

    def _get_backend(self, device: torch.device) -> Any:
        """The inner group's backend for `device`. It belongs to the generation: do not keep it."""
        return self.live().inner._get_backend(device)  # type: ignore[union-attr]

    # ---- the current generation ---------------------------------------------------------------------------------

    def live(self) -> Generation:
        """The current generation; raises FailoverInterrupt when a halt has ended it."""
        generation = self.generation
        if self.registry.over:
            raise self.registry.interrupt()
        if generation is None or generation.inner is None:
            if self.closed:
                raise ValueError(f"process group {self.spec.name!r} has been destroyed")
            if not self.deferred:
                raise self.registry.interrupt()
            self.registry.connect(self)
            generation = self.generation
            assert generation is not None
        return generation

    def remember_timeouts(self) -> None:
        """Keeps a timeout that the user has changed on the inner backend, for the next generation."""
        if self.generation is not None and isinstance(self.generation.inner, dist.ProcessGroup):
            changed = compat.group_options_timeout(self.generation.inner, next(iter(self.spec.devices)))
            self.spec.timeout = changed or self.spec.timeout

    # ---- operations ---------------------------------------------------------------------------------------------

    def perform(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if op == "barrier":
            args, kwargs = self.registry.barriers.place(self.spec, args, kwargs)
        else:
            self.registry.barriers.used(self.spec, args)
            self.registry.whole.begins(self, op)
        block = self._own_block()
        generation = self.live() if block is None else block.generation
        inner, entry = generation.inner, None
        if self.registry.journal.active or isinstance(inner, SoloGroup):
            values = (*args, *kwargs.values())
            outputs = flatten(values[0]) if op in compat.OUTPUT_FIRST and values else []
            entry = self.registry.journal.begin(self.spec.key, op, outputs, inputs.compared(op, values))
            if isinstance(inner, SoloGroup):
                work = inner.run(op, values[0] if outputs else [], values[1:])
                return work if entry is None else self.registry.journal.replay(entry, outputs, work)
        waits = self._waits(op, (*args, *kwargs.values()))
        followed = self._follow() if waits is Waits.INNER and block is None else None
        work = self._call(generation, op, args, kwargs)
        if work is None:  # NCCL: in a coalesced block, or waited for already, by the current stream
            if followed is not None:
                followed.end()
            if entry is not None and block is not None:
                block.entries.append(entry)
            elif entry is not None:
                entry.capture(None)
            return None
        return SwappableWork(
            generation,
            work,
            entry.capture if entry is not None else None,
            limit=self.spec.timeout if waits is Waits.ASIDE else None,
            waits=waits,
            collective=followed,
        )

    def _follow(self) -> Collective | None:
        """For who paces by the collectives in flight: a device's own are launched long before they run."""
        return self.registry.host.collective_begins()

    def _waits(self, op: str, values: tuple[Any, ...]) -> Waits:
        """How to wait for an operation, by the backend that carries it: gloo carries tensors of a GPU too."""
        tensors = flatten(list(values[:2]))  # only the inputs where this rank gets no outputs
        device = tensors[0].device if tensors else getattr(values[0], "device", None) if values else None
        if (self.name() if device is None else self.spec.devices.get(device.type)) != "gloo":
            return Waits.INNER
        return Waits.ASIDE if op in compat.POINT_TO_POINT else Waits.SLICES

    def _call(self, generation: Generation, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`inner.name(*args)`; a failure that belongs to a failover raises FailoverInterrupt."""
        host = self.registry.host

        def attempt() -> Any:
            host.enter(ACTIVITY_COLLECTIVE)
            try:
                return getattr(generation.inner, name)(*args, **kwargs)
            finally:
                host.leave()

        def judge(failure: Exception) -> None:
            self.leave_block()  # before the verdict is waited for: a halt frees what NCCL keeps in an open one
            self.registry.failed(failure, generation.epoch)

        return judged(attempt, judge)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        listener.run(self, self._monitored_barrier, timeout, wait_all_ranks)

    def _monitored_barrier(self, timeout: timedelta | None, wait_all_ranks: bool) -> None:
        generation = self.live()
        entry = self.registry.journal.begin(self.spec.key, "monitored_barrier", [])
        if isinstance(generation.inner, SoloGroup):
            return
        waiting.aside(self.registry, lambda: self._call(generation, "monitored_barrier", (timeout, wait_all_ranks), {}))
        if entry is not None:
            entry.capture(None)

    def _start_coalescing(self, device: torch.device) -> None:
        listener.start_coalescing(self, device)

    def _end_coalescing(self, device: torch.device) -> Any:
        return listener.end_coalescing(self, device)

    def start_block(self, device: torch.device) -> None:
        generation = self.live()
        followed = self._follow() if self._waits("barrier", ()) is Waits.INNER else None
        if isinstance(generation.inner, dist.ProcessGroup):
            self._call(generation, "_start_coalescing", (device,), {})
        self._block = Block(generation, device, followed)

    def end_block(self, device: torch.device) -> Any:
        block = self._own_block()
        if block is None:
            raise self.registry.interrupt() if self.registry.over else RuntimeError("nothing is being coalesced")
        self._block = None
        if isinstance(block.generation.inner, SoloGroup):
            return None
        work = self._call(block.generation, "_end_coalescing", (device,), {})
        if work is None:  # as in _run
            block.capture()
            if block.followed is not None:
                block.followed.end()
            return None
        waits = self._waits("barrier", ())
        return SwappableWork(block.generation, work, block.capture, waits=waits, collective=block.followed)

    def _own_block(self) -> Block | None:
        """The one that this thread is in: what other threads give the group meanwhile is none of it."""
        block = self._block
        return block if block is not None and block.is_own() else None

    def leave_block(self) -> None:
        """This thread coalesces no more, whatever was begun: an operation failed, or the generation is over."""
        block = self._own_block()
        if block is not None:
            self._block = None
            block.abandon()
        if self._block is None:
            forget_torchs(self)

    # ---- settings, which every later generation gets too --------------------------------------------------------

    def set_timeout(self, timeout: timedelta) -> None:
        self.spec.timeout = timeout
        self._forward("set_timeout", timeout)

    def _enable_collectives_timing(self) -> None:
        self.spec.timed = True
        self._forward("_enable_collectives_timing")

    def _register_on_completion_hook(self, hook: Any) -> None:
        self._forward("_register_on_completion_hook", hook)
        self.spec.completion_hooks.append(hook)

    def _has_hooks(self) -> bool:
        return bool(self._forward("_has_hooks"))

    def _wait_for_pending_works(self) -> None:
        self._forward("_wait_for_pending_works")

    def _get_sequence_number_for_group(self) -> int:
        return int(self._forward("_get_sequence_number_for_group") or 0)

    def _set_sequence_number_for_group(self) -> None:
        self._forward("_set_sequence_number_for_group")

    def _forward(self, name: str, *args: Any) -> Any:
        inner = self.live().inner
        return getattr(inner, name)(*args) if isinstance(inner, dist.ProcessGroup) else None

    # ---- life ---------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """As torch's; the group is not built again in later epochs."""
        if (
            self.generation is not None
            and isinstance(self.generation.inner, dist.ProcessGroup)
            and not self.registry.over
        ):
            nccl.shut_down(self.generation.inner)
        self.registry.close_group(self)

    def abort(self) -> None:
        """As torch's; the group is not built again in later epochs."""
        if self.generation is not None and isinstance(self.generation.inner, dist.ProcessGroup):
            self.generation.inner.abort()
        self.registry.close_group(self)

    def split_group(
        self,
        ranks: Sequence[int],
        timeout: timedelta | None = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        device_types: Sequence[torch.device] | None = None,
    ) -> SwappableGroup | None:
        """As torch's, `ranks` being ranks of this group; the new group is connected anew instead of split off."""
        if self.spec.rank not in ranks:
            return None
        wanted = {device.type for device in device_types} if device_types is not None else set(self.spec.devices)
        devices = {device: name for device, name in self.spec.devices.items() if device in wanted}
        name = group_name or f"{self.spec.name}:split:{'-'.join(map(str, ranks))}"
        spec = GroupSpec(
            name=name,
            key=self.registry.new_key(name),
            rank=list(ranks).index(self.spec.rank),
            size=len(ranks),
            ranks=tuple(self.spec.ranks[rank] for rank in ranks),
            backend=",".join(f"{device}:{backend}" for device, backend in devices.items()),
            devices=devices,
            timeout=timeout or self.spec.timeout,
            options=opts,
            bound_device=self.bound_device_id,
        )
        group = self.registry.add_group(spec, dist.PrefixStore(f"{name}/", self._store))
        group._set_group_name(compat.group_name(name))
        group._set_group_desc(group_desc or f"{self.group_desc}:split")
        return group


surface.complete(SwappableGroup)
