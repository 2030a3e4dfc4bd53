"""What ranks tell each other about themselves, to find out whether they are alike: plain bytes, or numbers later."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import torch
import torch.distributed as dist

from . import compat

_HEAD = struct.Struct("<QQ")  # bytes that follow, their checksum


class Garbled(Exception):
    """What arrived is not what was sent: a collective on a device was aborted under way."""


def gather_bytes(data: bytes, group: Any = None) -> list[bytes]:
    """`data` of each rank of `group` (None: all), in the group's order. Waits. Raises Garbled, FailoverInterrupt."""
    device, size = compat.device_of(group), dist.get_world_size(group)
    length = torch.tensor([len(data)], dtype=torch.int64, device=device)
    dist.all_reduce(length, dist.ReduceOp.MAX, group)
    room = _HEAD.size + int(length)
    if room < _HEAD.size + len(data):
        raise Garbled("a length that is shorter than this rank's own")
    message = _HEAD.pack(len(data), zlib.crc32(data)) + data
    sent = torch.frombuffer(bytearray(message.ljust(room, b"\0")), dtype=torch.uint8).to(device)
    arrived = [torch.empty(room, dtype=torch.uint8, device=device) for _ in range(size)]
    dist.all_gather(arrived, sent, group)
    return [_taken_out(tensor.cpu().numpy().tobytes()) for tensor in arrived]


def _taken_out(message: bytes) -> bytes:
    size, checksum = _HEAD.unpack_from(message)
    data = message[_HEAD.size : _HEAD.size + size]
    if len(data) != size or zlib.crc32(data) != checksum:
        raise Garbled("bytes whose checksum is wrong")
    return data


class Alike:
    """Whether the ranks of a group have the same numbers: asked now, answered later; nothing waits in between.

    numbers: int64 [n], the same n on each rank; on the CPU or on the group's device.
    """

    def __init__(self, numbers: torch.Tensor, group: Any = None) -> None:
        # The greatest of x and of -x - 1 among the ranks are x and -x - 1 themselves if x is the same on all of them.
        self._both = torch.stack([numbers, ~numbers]).to(compat.device_of(group))
        self._work: Any = dist.all_reduce(self._both, dist.ReduceOp.MAX, group, async_op=True)
        self._event: Any = None
        if self._both.is_cuda:
            self._work.wait()  # in the stream
            host = torch.empty(self._both.shape, dtype=torch.int64, pin_memory=True)
            host.copy_(self._both, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            self._both = host

    def different(self) -> list[int]:
        """Places of the numbers that are not the same on all ranks. Waits for them. Raises FailoverInterrupt."""
        if self._event is None:
            self._work.wait()
        else:
            self._event.synchronize()
        greatest, least = self._both[0], ~self._both[1]
        return (greatest != least).nonzero().flatten().tolist()
