"""What a rank puts into a collective of its initialisation, and whether a replacement has to put in the same.

A replacement's own input reaches nobody: the others have had the dead rank's. In some collectives the result takes the
input's place: broadcast, scatter, all_gather, object collectives, and MIN and MAX, by which ranks agree on one of their
values. There the journal puts the dead rank's value back, and a clock or a process id does no harm. Everywhere else an
input that differs shows that the script's own state differs.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import torch
import torch.distributed as dist

from ff_core.copy.binding import crc32c_at

from .solo import flatten

_SAMPLE = 16 << 20  # bytes of one tensor that are looked at
_AGREEING = (dist.ReduceOp.MIN, dist.ReduceOp.MAX)
_REDUCING = frozenset(
    {"allreduce", "allreduce_coalesced", "reduce", "reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single"}
    | {"reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced"}
)
_FIRST = frozenset({"allreduce", "allreduce_coalesced", "reduce", "send"})  # the input is the first argument
_SENT = frozenset({"send", "alltoall", "alltoall_base", "all_to_all_single"})


def compared(op: str, values: tuple[Any, ...]) -> list[torch.Tensor] | None:
    """The tensors that a replacement must put in as the dead rank did; None if the result takes their place.

    op: a method of `dist.ProcessGroup`.  values: its arguments, in order.
    """
    if op == "gather":
        return flatten(values[1]) if not flatten(values[0]) else None  # where it is received, the result has it
    if op not in _REDUCING and op not in _SENT:
        return None
    if op in _REDUCING and _operator(values) in _AGREEING:
        return None
    return flatten(values[0] if op in _FIRST else values[1])


def _operator(values: tuple[Any, ...]) -> Any:
    for value in values:
        found = getattr(value, "reduceOp", value)
        if isinstance(found, dist.ReduceOp):
            return found.op if hasattr(found, "op") else found
        if isinstance(found, dist.ReduceOp.RedOpType):
            return found
    return None


def fingerprint(tensors: list[torch.Tensor]) -> bytes:
    """16 bytes of shapes, dtypes and contents; of a tensor of more than 16 MiB the beginning stands for the rest.

    Contents count by their CRC32C, which runs at the speed of memory: a model's weights pass here, one by one.
    """
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            flat = tensor.detach().reshape(-1)[: _SAMPLE // tensor.element_size()]
            held = flat.cpu().contiguous()
            digest.update(struct.pack("<I", crc32c_at(held.data_ptr(), held.numel() * held.element_size())))
    return digest.digest()
