"""Results before training that are large: state, which is restored as state, or data of the script.

A weight that rank 0 broadcasts is state. An index, a vocabulary, a table of the script's is not: a replacement would go
on with what it alone has. What is no state is kept in the journal, up to 32 MiB of each rank; what has no room there is
refused where it differs. When training starts, a result is taken for state if

* it lies in the memory of state, or
* it consists of real numbers, and has the shape of a piece of state, or a framework has asked for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType

import torch
from torch.multiprocessing.reductions import StorageWeakRef

ROOM = 32 << 20  # bytes of all such results of a rank
_FRAMEWORKS = ("deepspeed", "megatron", "accelerate", "transformers", "transformer_engine", "apex", "lightning")


class State:
    """What a rank's state consists of, when training starts."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        kept = list(tensors)
        self.shapes = {tuple(tensor.shape) for tensor in kept}
        self.memory = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in kept}


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
        self._real = tensor.is_floating_point() or tensor.is_complex()
        self._framework = self._real and _framework_asks()
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
        return self._real and (self._framework or self._shape in state.shapes)


def _framework_asks() -> bool:
    """Whether the collective that is made now was asked for by a framework or one of torch's modules."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        parts = frame.f_code.co_filename.split("/")
        if any(name in parts for name in _FRAMEWORKS) or ("torch" in parts and "nn" in parts):
            return True
        if "torch" not in parts and "ff_core" not in parts:
            return False  # the script
        frame = frame.f_back
    return False
