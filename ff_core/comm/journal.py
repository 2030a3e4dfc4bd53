"""The init journal: what a rank's collectives returned until training began.

A newcomer runs the same script alone. It reads from here what steers its control flow: flags that rank 0 broadcasts,
gathered names and sizes. Results are found by (group key, sequence number in the group), and store results by
(operation, key, occurrence). Dense tensors up to 64 KiB are kept; larger ones if they are no state (see `large`).
Object collectives travel as tensors of bytes. Nobody can restore those later, so they are kept up to 1 MiB.

What the newcomer puts in must be what the dead rank put in (see `inputs`), or its script is not the same any more. A
result that was too large to be kept may differ here. From then on this is not asked any more: what follows may have
been computed from that result, and will be right when the state is restored.

msgpack only, nothing is pickled by us. Format: {"format": 3, "ops": [[group, seq, op, signature, outputs, source,
site, is_object, inputs, large]], "store": [[op, key, [results]]]}. signature is [[shape, dtype]]; an output is bytes or
nil. inputs is the fingerprint of what was put in (nil: not compared). large says of outputs that are nil
[place, fingerprint, whether it is no state].
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import torch

from ff_core.errors import JournalMismatch

from .done import DoneWork
from .inputs import fingerprint
from .large import Large, Room, State
from .sites import call_site

LIMIT = 64 * 1024  # bytes of one output tensor
OBJECT_LIMIT = 1024 * 1024  # the same, inside an object collective
_FORMAT = 3


REMEDY = (
    "Something in the script's start comes out differently when it runs again: a clock, a process id, a random number "
    "without a seed. Draw it on one rank and use what torch.distributed.broadcast or broadcast_object_list gives "
    "(a replacement gets the job's value from it, on the source too), or take another way in a replacement: "
    "`if ff_core.is_replacement()`"
)


def _signature(outputs: list[torch.Tensor]) -> list[list[Any]]:
    return [[list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for tensor in outputs]


def _words(op: str, signature: list[list[Any]]) -> str:
    shown = ", ".join(f"{dtype}{shape}" for shape, dtype in signature[:4])
    return f"{op}({shown}{', ...' if len(signature) > 4 else ''})"


def _to_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous()
    return ctypes.string_at(flat.data_ptr(), flat.numel() * flat.element_size()) if flat.numel() else b""


def _from_bytes(data: bytes, like: torch.Tensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(like.dtype).reshape(like.shape)


class Entry:
    """One collective: being recorded (`capture` when it is complete), or found in a journal (`replay`)."""

    __slots__ = (
        *("captured", "group", "inputs", "is_object", "large", "op"),
        *("outputs", "room", "seq", "signature", "site", "source", "tensors"),
    )

    def __init__(self, group: str, seq: int, op: str, signature: list[list[Any]], site: str, is_object: bool) -> None:
        self.group = group
        self.seq = seq
        self.op = op
        self.signature = signature
        self.site = site
        self.is_object = is_object
        self.outputs: list[bytes | None] = [None] * len(signature)
        self.source: int | None = None
        self.tensors: list[torch.Tensor] = []
        self.inputs: bytes | None = None  # fingerprint of what was put in
        self.large: list[list[Any]] = []  # as in the format
        self.captured: list[Large] = []
        self.room = Room()

    def capture(self, work: Any) -> None:
        """Keeps the results. `work`: the inner handle, for the sender of a receive from anyone."""
        limit = OBJECT_LIMIT if self.is_object else LIMIT
        self.outputs = [
            _to_bytes(tensor) if _is_plain(tensor) and tensor.numel() * tensor.element_size() <= limit else None
            for tensor in self.tensors
        ]
        self.captured = [
            Large(place, self.tensors[place], fingerprint([self.tensors[place]]), self.room)
            for place, data in enumerate(self.outputs)
            if data is None and _is_plain(self.tensors[place]) and not self.is_object
        ]
        self.tensors = []
        if self.op == "recv_anysource" and work is not None:
            self.source = int(work._source_rank())

    def settle(self, state: State | None) -> None:
        """Training starts: what is no state stays in the journal, if there was room."""
        for large in self.captured:
            is_data = not large.is_state(state)
            if is_data and large.data is not None:
                self.outputs[large.place] = large.data
            else:
                self.large.append([large.place, large.mark, is_data])
        self.captured = []

    def differs(self, outputs: list[torch.Tensor]) -> bool:
        """Whether results that the journal does not have are others than `outputs`, those of a replay.

        Raises JournalMismatch if they are no state, which would be put right.
        """
        places = [(place, no_state) for place, mark, no_state in self.large if fingerprint([outputs[place]]) != mark]
        if any(no_state for _, no_state in places):
            raise JournalMismatch(
                f"{_words(self.op, self.signature)} at {self.site}: a replacement cannot get this result, which is no "
                "part of the model's state and too large to be kept (32 MiB in all). Pass large data through a file, "
                "or make them on every rank from the same seed"
            )
        return bool(places)

    def replay(self, outputs: list[torch.Tensor], local: DoneWork) -> DoneWork:
        """Puts the recorded results over the local ones; returns the handle to give out."""
        with torch.no_grad():
            for tensor, data in zip(outputs, self.outputs, strict=True):
                if data is not None and tensor.numel():
                    tensor.detach().copy_(_from_bytes(data, tensor))
                elif data is None and self.is_object:
                    raise JournalMismatch(
                        f"{_words(self.op, self.signature)} at {self.site}: an object collective of more than "
                        f"{OBJECT_LIMIT} bytes before training starts cannot be repeated by a replacement; "
                        "pass large objects through files, or after training has started"
                    )
        return local if self.source is None else DoneWork(outputs, self.source)

    def pack(self) -> list[Any]:
        """As in the format."""
        name = [self.group, self.seq, self.op, self.signature]
        return [*name, self.outputs, self.source, self.site, self.is_object, self.inputs, self.large]


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


class Journal:
    """Recording, replaying, or neither.

    `active`: operations must be announced with `begin`.  `frozen`: training has started.
    """

    def __init__(self, *, record: bool, data: bytes | None = None) -> None:
        self._lock = threading.Lock()
        self._recording = record
        self._replaying = data is not None
        self._next: dict[str, int] = {}
        self._ops: dict[tuple[str, int], Entry] = {}
        self._store: dict[tuple[str, str], list[Any]] = {}
        self._store_next: dict[tuple[str, str], int] = {}
        self._frozen: bytes | None = data
        self.active = record or self._replaying
        self.frozen = False
        self._paused = False
        self._room = Room()
        self._compares = True  # until a result differs that is too large to be put right
        if data is not None:
            self._load(data)

    @property
    def replaying(self) -> bool:
        """Whether results come from a dead rank's journal."""
        return self._replaying

    def freeze(self, state: Iterable[torch.Tensor] | None = None) -> bytes:
        """Training starts: ends recording (or replaying) and returns the journal. Later calls return the same bytes.

        state: what will be restored as state; None if that is not known.
        """
        with self._lock:
            self.active = self._recording = self._replaying = False
            self.frozen = True
            if self._frozen is None:
                known = None if state is None else State(state)
                for entry in self._ops.values():
                    entry.settle(known)
                self._frozen = msgpack.packb(
                    {
                        "format": _FORMAT,
                        "ops": [entry.pack() for entry in self._ops.values()],
                        "store": [[op, key, results] for (op, key), results in self._store.items()],
                    }
                )
            self._ops.clear()
            self._store.clear()
            return self._frozen

    def passed(self) -> None:
        """Replaying: training began here in the dead rank. What this process does until it joins is in no journal."""
        with self._lock:
            self.active = self._replaying = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around a part of initialisation that a newcomer leaves out, because its result comes from memory.

        Operations inside are neither recorded nor counted. It must create no groups: the newcomer would lack them.
        """
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def unused(self) -> list[str]:
        """Recorded collectives that the newcomer has not issued (yet), in words."""
        with self._lock:
            return [
                f"{_words(entry.op, entry.signature)} on group {entry.group} at {entry.site}"
                for (group, seq), entry in self._ops.items()
                if self._replaying and seq >= self._next.get(group, 0)
            ]

    # ---- collectives --------------------------------------------------------------------------------------------

    def begin(
        self, group: str, op: str, outputs: list[torch.Tensor], inputs: list[torch.Tensor] | None = None
    ) -> Entry | None:
        """Announces the next operation of `group`. Recording: the entry to `capture`; replaying: the one to `replay`.

        inputs: what a newcomer must put in as the dead rank did; None: its result takes their place (see `inputs`).
        Raises JournalMismatch if the journal has another operation there, or none, or other inputs.
        """
        if not self.active or self._paused:
            return None
        site, is_object = call_site()
        signature = _signature(outputs)
        with self._lock:
            seq = self._next.get(group, 0)
            self._next[group] = seq + 1
            if self._recording:
                entry = Entry(group, seq, op, signature, site, is_object)
                entry.tensors, entry.room = list(outputs), self._room
                entry.inputs = None if inputs is None or is_object else fingerprint(inputs)
                self._ops[group, seq] = entry
                return entry
            if not self._replaying:
                return None
            found = self._ops.get((group, seq))
        here = f"{_words(op, signature)} on group {group} (its operation number {seq}) at {site}"
        if found is None:
            raise JournalMismatch(f"{here}: the rank that this process replaces did not issue it before training began")
        if (found.op, found.signature) != (op, signature):
            recorded = f"{_words(found.op, found.signature)} at {found.site}"
            raise JournalMismatch(f"{here}: the rank that this process replaces issued {recorded} instead. {REMEDY}")
        if self._compares and found.inputs is not None and inputs is not None and fingerprint(inputs) != found.inputs:
            what = _words("", _signature(inputs))
            raise JournalMismatch(
                f"{here}: this process puts in {what}, and the rank that it replaces put in other values or another "
                f"shape (at {found.site}). {REMEDY}"
            )
        return found

    def replay(self, entry: Entry, outputs: list[torch.Tensor], local: DoneWork) -> DoneWork:
        """`entry.replay`; notes whether anything that follows can still be compared."""
        work = entry.replay(outputs, local)
        self._compares = self._compares and not entry.differs(outputs)
        return work

    # ---- the store ----------------------------------------------------------------------------------------------

    def store_result(self, op: str, key: str, result: Any) -> Any:
        """Records what the store answered to `op` on `key` (None, bool, int, bytes or lists of those); returns it."""
        if self._recording and not self._paused:
            with self._lock:
                self._store.setdefault((op, key), []).append(result)
        return result

    def stored(self, op: str, key: str) -> tuple[bool, Any]:
        """While replaying: (True, the recorded answer); (False, None) if there is no further one.

        Polls (`check`) repeat their last answer: how often a loop asks is a matter of time.
        """
        with self._lock:
            results = self._store.get((op, key), [])
            index = self._store_next.get((op, key), 0)
            self._store_next[op, key] = index + 1
            if index < len(results):
                return True, results[index]
            return (True, results[-1]) if results and op == "check" else (False, None)

    def _load(self, data: bytes) -> None:
        try:
            content = msgpack.unpackb(data)
            if content["format"] != _FORMAT:
                raise JournalMismatch(f"init journal has format {content['format']!r}; this version reads {_FORMAT}")
            for group, seq, op, signature, outputs, source, site, is_object, inputs, large in content["ops"]:
                entry = Entry(group, seq, op, signature, site, is_object)
                entry.outputs, entry.source, entry.inputs, entry.large = outputs, source, inputs, large
                self._ops[group, seq] = entry
            for op, key, results in content["store"]:
                self._store[op, key] = results
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise JournalMismatch(f"init journal of {len(data)} bytes cannot be read: {error!r}") from error
