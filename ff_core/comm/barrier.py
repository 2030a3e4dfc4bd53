"""Which device an NCCL barrier runs on, in every generation of a group.

A barrier has no tensor that says so. torch takes the first device that the group's operations have used. A group that
was connected anew has used none yet. torch then guesses: rank modulo devices, and the rank is the one in the first NCCL
group that the process has made. In a replacement that may be any group. Two ranks then meet on one device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from . import nccl
from .solo import flatten
from .spec import GroupSpec


class BarrierDevices:
    """One per process: the devices that operations of its NCCL groups have used, by `GroupSpec.key`."""

    def __init__(self) -> None:
        self._used: dict[str, torch.device] = {}

    def begins(
        self, spec: GroupSpec, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """An operation of a group made to `spec`, a method of `dist.ProcessGroup`; gives the arguments it is to have.

        A barrier gets a device in its options, if the caller has named none. That is the first device that the group
        has used, else the first that any group has used, else torch's guess from the global rank. The devices of other
        operations are remembered for that.
        """
        if not nccl.is_in(spec):
            return args, kwargs
        if op != "barrier":
            if spec.key not in self._used:
                self._remember(spec, args)
            return args, kwargs
        options = args[0] if args else kwargs.get("opts")
        if options is None:
            options = dist.BarrierOptions()
            args, kwargs = (), {**kwargs, "opts": options}
        if not options.device_ids and spec.bound_device is None:
            options.device_ids = [self._device(spec)]
        return args, kwargs

    def _remember(self, spec: GroupSpec, values: tuple[Any, ...]) -> None:
        for tensor in flatten(list(values[:2])):
            if tensor.device.type == "cuda":
                self._used[spec.key] = tensor.device
                return

    def _device(self, spec: GroupSpec) -> int:
        used = self._used.get(spec.key) or next(iter(self._used.values()), None)
        if used is not None and used.index is not None:
            return used.index
        return spec.global_rank % torch.cuda.device_count()
