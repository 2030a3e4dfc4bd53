"""The checkpoint razor: which bytes of a rank's state must be copied, because nobody else can give them back.

An adapter declares every tensor with who else holds it (`contract.adapter.TensorSpec`). The plan that follows says
where each copied tensor lies in a slot's payload:

    | UNIQUE tensors, 64-byte aligned ... padding | REPLICATED tensors, 64-byte aligned ... |
    |<------------- sent_bytes ------------------>|<-------------- local_bytes ------------>|
      own slot and every replica                     own slot only; begins at a multiple of 4096

The order is the adapter's, so that two processes playing the same rank get the same plan: compare `Plan.fingerprint()`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.errors import UnsupportedError
from ff_core.units import format_bytes

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64  # of a segment: a cache line
PAGE = 4096  # of sent_bytes: replicas hold whole pages


class Segment(NamedTuple):
    """A copied tensor and its place: payload bytes [offset, offset + bytes)."""

    name: str
    tensor: torch.Tensor
    bytes: int
    offset: int
    held: Held

    def for_engine(self) -> tuple[int, int, int, int]:
        """(address, bytes, payload offset, device: -1 for the host), as the copy engine takes it."""
        device = -1 if self.tensor.device.type == "cpu" else self.tensor.device.index or 0
        return self.tensor.data_ptr(), self.bytes, self.offset, device


Span = tuple[int, int, bool, TensorSpec]  # address of the first byte, of the one behind the last, is it copied, of what


@dataclass(frozen=True, slots=True)
class Plan:
    """What is copied of one rank. sent_bytes and local_bytes as in the module's picture; totals count tensor bytes."""

    segments: tuple[Segment, ...]
    sent_bytes: int
    local_bytes: int
    totals: dict[Held, int]
    specs: tuple[TensorSpec, ...] = field(repr=False)

    @property
    def payload_bytes(self) -> int:
        return self.sent_bytes + self.local_bytes

    @property
    def on_device(self) -> bool:
        """Whether some of the state lies in the memory of a GPU, which a dying process gives back only at its end."""
        return any(spec.tensor.device.type != "cpu" for spec in self.specs)

    def fingerprint(self) -> str:
        """Hash of names, kinds, dtypes, shapes and places: equal exactly if slots of one plan fit the other."""
        digest = hashlib.sha256()
        for s in self.segments:
            digest.update(f"{s.name}|{s.held.value}|{s.tensor.dtype}|{tuple(s.tensor.shape)}|{s.offset}\n".encode())
        return digest.hexdigest()


def make_plan(specs: Iterable[TensorSpec]) -> Plan:
    """The plan for one rank's tensors.

    Raises UnsupportedError if a name occurs twice, or if memory is declared twice in ways that contradict each other.
    Also if a copied tensor is not dense and contiguous, or lies neither on the host nor on a CUDA device.
    """
    specs = tuple(specs)
    _check_names(specs)
    sized: dict[Held, list[tuple[TensorSpec, int]]] = {held: [] for held in Held}
    spans: dict[torch.device, list[Span]] = {}
    for spec in specs:  # may be tens of thousands: every tensor is asked once
        tensor, held = spec.tensor, spec.held
        device = tensor.device
        strided, place = _is_strided(tensor.layout), _is_place(device)
        size = tensor.nbytes if strided else _bytes(tensor)
        sized[held].append((spec, size))
        copied = held is Held.UNIQUE or held is Held.REPLICATED
        dense = strided and tensor.is_contiguous()
        if copied and not (dense and place):
            _refuse(spec)
        if size and strided and place:
            begin = tensor.data_ptr()
            spans.setdefault(device, []).append((begin, begin + (size if dense else _span(tensor)), copied, spec))
    for of_device in spans.values():
        _check_overlap(of_device)
    totals = {held: sum(size for _, size in listed) for held, listed in sized.items()}

    segments: list[Segment] = []
    end = _place(sized[Held.UNIQUE], 0, segments)
    sent = _align(end, PAGE)
    end = _place(sized[Held.REPLICATED], sent, segments)
    return Plan(tuple(segments), sent, _align(end, ALIGNMENT) - sent, totals, specs)


def _place(sized: Iterable[tuple[TensorSpec, int]], start: int, segments: list[Segment]) -> int:
    end = start
    for spec, size in sized:
        if size == 0:  # nothing to copy
            continue
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        segments.append(Segment(spec.name, spec.tensor, size, offset, spec.held))
        end = offset + size
    return end


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _align(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _check_names(specs: Sequence[TensorSpec]) -> None:
    if len({spec.name for spec in specs}) == len(specs):
        return
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    raise UnsupportedError(f"tensor names must be unique within a rank; declared twice: {', '.join(twice)}")


def _refuse(spec: TensorSpec) -> NoReturn:
    tensor = spec.tensor
    if not _is_place(tensor.device):
        raise UnsupportedError(f"{spec.name}: a tensor on {tensor.device} cannot be copied; allowed: cpu and cuda")
    raise UnsupportedError(
        f"{spec.name}: a tensor of shape {tuple(tensor.shape)} with layout {tensor.layout} is not contiguous; "
        "declare the flat buffer that it is a view of"
    )


@cache
def _is_place(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")


@cache
def _is_strided(layout: torch.layout) -> bool:
    return str(layout) == "torch.strided"


def _span(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last element."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _check_overlap(spans: list[Span]) -> None:
    """Copied bytes may be declared once only: restoring them twice, or as derived too, has no defined outcome."""
    spans.sort(key=itemgetter(0))
    # The end, and the spec, of the span seen so far that reaches furthest: among all, and among copied tensors.
    furthest = furthest_copied = 0
    owner = owner_copied = spans[0][3]
    for begin, end, copied, spec in spans:
        if (furthest if copied else furthest_copied) > begin:
            other = owner if copied else owner_copied
            raise UnsupportedError(
                f"{other.name} ({other.held.value}) and {spec.name} ({spec.held.value}) share memory; "
                "declare each copied byte once, in one tensor"
            )
        if end > furthest:
            furthest, owner = end, spec
        if copied:  # copied ones do not overlap each other, so the last reaches furthest
            furthest_copied, owner_copied = end, spec


_COPIED = {
    Held.UNIQUE: "own slot + replicas",
    Held.REPLICATED: "own slot",
    Held.DERIVED: "not copied",
    Held.CONSTANT: "not copied",
}


def _why(spec: TensorSpec) -> str:
    if spec.held is Held.UNIQUE:
        return "no other rank has it"
    if spec.held is Held.REPLICATED:
        return f"the same on every rank of {spec.over or 'a group'}; kept to roll back an iteration"
    if spec.held is Held.DERIVED:
        return f"recomputed from {spec.source or 'other state'}"
    return f"never changes; the same on every rank of {spec.over or 'a group'}"


def describe(plan: Plan, coverage: str) -> str:
    """A table for people: what is copied each version, what is not and why, in bytes of this rank.

    coverage: the controller's sentence on what the job is protected against, which ends the table.
    """
    groups: dict[tuple[Held, str], list[int]] = {}
    for held in Held:
        for spec in plan.specs:
            if spec.held is held:
                count_bytes = groups.setdefault((held, _why(spec)), [0, 0])
                count_bytes[0] += 1
                count_bytes[1] += _bytes(spec.tensor)
    rows = [("state", "tensors", "bytes per rank", "copied to", "why")]
    rows += [
        (held.value, str(count), f"{size:,} ({format_bytes(size)})", _COPIED[held], why)
        for (held, why), (count, size) in groups.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for state, count, size, copied, why in rows:
        lines.append(
            f"  {state:<{widths[0]}}  {count:>{widths[1]}}  {size:>{widths[2]}}  {copied:<{widths[3]}}  {why}".rstrip()
        )
    unique = plan.totals[Held.UNIQUE]
    lines.append(
        f"  each version: {format_bytes(unique + plan.totals[Held.REPLICATED])} into the own slot, "
        f"{format_bytes(unique)} to each replica"
    )
    lines.append(f"  {coverage}")
    return "\n".join(lines)
