"""Results before training that are large: state, which is restored as state, or data of the script.

A weight that rank 0 broadcasts is state. An index, a vocabulary, a table of the script's is not: a replacement would go
on with what it alone has. What is no state is kept in the journal, up to 32 MiB of each rank. What has no room there is
refused where it differs.

When training starts, a result is taken for state in each of these cases:
  * It lies in the memory of state.
  * It consists of real numbers, and a piece of state has its shape and its values. A sample of them is compared: a
    framework may have moved a weight into other memory and another precision.
  * It consists of real numbers, and a framework has asked for it. (ZeRO-3 sends weights as bytes when it partitions
    them.)
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from types import FrameType

import torch
from torch.multiprocessing.reductions import StorageWeakRef

ROOM = 32 << 20  # bytes of all such results of a rank
_FRAMEWORKS = ("deepspeed", "megatron", "transformer_engine", "apex")
#: Where a framework sends weights as bytes.
_AS_BYTES = ("deepspeed/runtime/zero/partition_parameters.py",)
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)  # that a weight may have been brought into
_SAMPLE = 4096  # elements


class State:
    """What a rank's state consists of, when training starts."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._of_shape: defaultdict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        self._looks: dict[tuple[int, ...], set[bytes]] = {}
        self.memory = set()
        for tensor in tensors:
            self._of_shape[tuple(tensor.shape)].append(tensor)
            self.memory.add(StorageWeakRef(tensor.untyped_storage()).cdata)

    def has(self, shape: tuple[int, ...], looks: set[bytes]) -> bool:
        """Whether a piece of state has this shape, and looks like that in one of its precisions."""
        if shape not in self._looks:
            self._looks[shape] = {_look(tensor, tensor.dtype) for tensor in self._of_shape[shape]}
        return not self._looks[shape].isdisjoint(looks)


class Room:
    """Bytes that are left for large results."""

    def __init__(self) -> None:
        self.left = ROOM


class Large:
    """One large result. place: among its operation's outputs.  mark: its fingerprint.  data: its bytes, or None."""

    def __init__(self, place: int, tensor: torch.Tensor, mark: bytes, room: Room) -> None:
        self.place, self.mark = place, mark
        self.data: bytes | None = None
        self._shape = tuple(tensor.shape)
        asked = _asking_framework()
        as_bytes = tensor.dtype is torch.uint8 and asked is not None and asked.endswith(_AS_BYTES)
        self._real = tensor.is_floating_point() or tensor.is_complex() or as_bytes
        self._framework = self._real and asked is not None
        may_be_state = self._real and not self._framework
        self._looks = {_look(tensor, dtype) for dtype in {tensor.dtype, *_PRECISIONS}} if may_be_state else set()
        self._memory = StorageWeakRef(tensor.untyped_storage())
        size = tensor.numel() * tensor.element_size()
        if not self._framework and size <= room.left:
            room.left -= size
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            self.data = flat.view(torch.uint8).numpy().tobytes()

    def is_state(self, state: State | None) -> bool:
        """state: None if it is not known, then all real numbers are taken for state."""
        if state is None:
            return self._real
        if not self._memory.expired() and self._memory.cdata in state.memory:
            return True
        return self._real and (self._framework or state.has(self._shape, self._looks))


def _look(tensor: torch.Tensor, dtype: torch.dtype) -> bytes:
    """16 bytes of a sample of the contents, in precision `dtype`."""
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(flat.numel() // _SAMPLE, 1)][:_SAMPLE].to(dtype).cpu().contiguous()
    return hashlib.blake2b(sample.view(torch.uint8).numpy().data, digest_size=16).digest()


def _asking_framework() -> str | None:
    """The file of the framework, or of torch's module, that asks for the collective that is made now, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        parts = frame.f_code.co_filename.split("/")
        if parts[-3:-1] == ["deepspeed", "comm"]:  # a script's way to torch.distributed, too
            frame = frame.f_back
            continue
        if any(name in parts for name in _FRAMEWORKS) or ("torch" in parts and "nn" in parts):
            return frame.f_code.co_filename
        if "torch" not in parts and "ff_core" not in parts:
            return None  # the script
        frame = frame.f_back
    return None
