"""An arena: one rank's slots and init journal in one memory file, which outlives the processes that map it.

The agent creates it and keeps the descriptor; worker, receiver and sender map it. A slot holds one version: the
payload (tensors' bytes) and a blob (scalars). See docs/protocol.md for who may write when.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum

from ff_core.copy import memory
from ff_core.copy.binding import EINVAL, CLayout, CSegment, CSlotInfo, check, engine, error_of, last_error
from ff_core.copy.handle import Handle
from ff_core.errors import CorruptSlotError, EngineError

Segment = tuple[int, int, int, int]
"""A live tensor's (address, bytes, offset in the payload, device: -1 for host memory, else the CUDA device)."""


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """What an arena is for. All sizes in bytes.

    sent_bytes: prefix of the payload that replicas hold.  local_bytes: rest of the payload, in own slots only (0 in a
    replica's arena). blob_capacity: largest scalars.  journal_capacity: largest init journal.  chunk_bytes: unit of
    copying, a multiple of 4096.
    """

    rank: int
    sent_bytes: int
    local_bytes: int = 0
    blob_capacity: int = 1 << 20
    journal_capacity: int = 1 << 20
    chunk_bytes: int = 1 << 20
    slots: int = 2

    def to_c(self) -> CLayout:
        """Raises EngineError for a value that does not even fit the C structure."""
        for name, value in asdict(self).items():
            limit = 2**32 if name in ("rank", "slots") else 2**64
            if not isinstance(value, int) or not 0 <= value < limit:
                raise EngineError(f"arena layout: {name} is {value!r}, allowed are 0 to {limit - 1}")
        return CLayout(**asdict(self))

    @property
    def payload_bytes(self) -> int:
        return self.sent_bytes + self.local_bytes


class SlotState(Enum):
    EMPTY = 0
    WRITING = 1  # or abandoned by a writer that died or was cancelled
    COMPLETE = 2
    DAMAGED = 3  # says complete, but its header's checksum does not match


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot's header. Of a slot that is not complete, epoch and version only hint at what was being written; version
    -1: none.

    payload_bytes: filled prefix of the payload.  full: that is the whole payload (False: only what replicas hold).
    """

    state: SlotState
    epoch: int = 0
    version: int = -1
    payload_bytes: int = 0
    blob_bytes: int = 0
    full: bool = False
    checksummed: bool = True

    @property
    def complete(self) -> bool:
        return self.state is SlotState.COMPLETE


NOTES_OFFSET = memory.PAGE // 2
NOTES_BYTES = memory.PAGE // 2
"""Of an arena: memory for what a worker notes while an iteration runs. It outlives the worker; no slot has it."""


def arena_bytes(layout: ArenaLayout | Mapping[str, int]) -> int:
    """Memory that an arena of this layout takes. Raises EngineError naming the field that is wrong."""
    if not isinstance(layout, ArenaLayout):
        layout = ArenaLayout(**layout)
    size: int = engine().ff_arena_bytes(ctypes.byref(layout.to_c()))
    if size == 0:
        raise error_of(EINVAL, last_error())
    return size


def segment_array(segments: Iterable[Segment]) -> ctypes.Array[CSegment]:
    """Segments as the engine takes them."""
    listed = [CSegment(address, size, offset, device, 0) for address, size, offset, device in segments]
    return (CSegment * len(listed))(*listed)


class Arena(Handle):
    """A mapped arena. Slot arguments count from 0 to layout.slots - 1. Closing it joins receivers that write into
    it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        """The memory file, owned by this object: pass it on (SCM_RIGHTS), do not close it."""
        self._mapping = memory.Mapping(fd, os.fstat(fd).st_size)
        self._closers: dict[object, Callable[[], None]] = {}
        self._users = 0
        layout = CLayout()
        try:
            check(engine().ff_arena_check(self.address, self.size, ctypes.byref(layout)))
        except BaseException:
            self._mapping.close()
            raise
        self.layout = ArenaLayout(**{name: getattr(layout, name) for name, *_ in CLayout._fields_})

    @classmethod
    def create(cls, layout: ArenaLayout, name: str = "ff-arena") -> Arena:
        """Allocate and format a new arena. `name` shows up in /proc.

        MemoryError: bytes needed and free; EngineError: what is wrong with the layout.
        """
        size = arena_bytes(layout)
        fd = memory.allocate(name, size)
        try:
            mapping = memory.Mapping(fd, size)
            try:
                check(engine().ff_arena_format(mapping.address, size, ctypes.byref(layout.to_c())))
            finally:
                mapping.close()
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_fd(cls, fd: int) -> Arena:
        """Map an arena made elsewhere; takes `fd` over, also when it fails. CorruptSlotError: not an arena."""
        try:
            if os.fstat(fd).st_size == 0:
                raise CorruptSlotError(f"descriptor {fd} is an empty file, not an arena")
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def address(self) -> int:
        return self._mapping.address

    @property
    def size(self) -> int:
        return self._mapping.size

    # ---- slots
    # --------------------------------------------------------------------------------------------------------------

    def slot_info(self, slot: int) -> SlotInfo:
        """The header of `slot`. CorruptSlotError: it says complete, but is damaged."""
        info = CSlotInfo()
        check(engine().ff_slot_info_get(self.address, self._index(slot), ctypes.byref(info)))
        return SlotInfo(
            SlotState(info.state),
            info.epoch,
            info.version,
            info.payload_bytes,
            info.blob_bytes,
            bool(info.full),
            bool(info.checksummed),
        )

    def slot_infos(self) -> list[SlotInfo]:
        """All headers; a damaged one has state DAMAGED."""
        infos = []
        for slot in range(self.layout.slots):
            try:
                infos.append(self.slot_info(slot))
            except CorruptSlotError:
                infos.append(SlotInfo(SlotState.DAMAGED))
        return infos

    def find(self, epoch: int, version: int) -> int | None:
        """The complete slot that holds (epoch, version)."""
        for slot, info in enumerate(self.slot_infos()):
            if info.complete and (info.epoch, info.version) == (epoch, version):
                return slot
        return None

    def verify(self, slot: int) -> None:
        """Check every checksum. CorruptSlotError names the chunk, or says that the slot is not complete."""
        check(engine().ff_slot_verify(self.address, self._index(slot)))

    def copy_slot(self, slot: int, to: Arena, to_slot: int) -> None:
        """Copy the complete version in `slot` into a slot of `to`, an arena of the same rank that nobody else uses.

        Verified; the local part goes along where both have it. Without the GIL. CopyCancelled: `slot` was written anew
        meanwhile; CorruptSlotError; EngineError: the layouts do not fit.
        """
        check(engine().ff_slot_copy(self.address, self._index(slot), to.address, to._index(to_slot)))

    def restore(self, slot: int, segments: Iterable[Segment]) -> None:
        """Verify the slot, then copy its bytes to the segments. On CorruptSlotError nothing was written.

        Segments on a CUDA device: waits until the device is idle before it writes, and until it has written.
        """
        array = segment_array(segments)
        check(engine().ff_slot_restore(self.address, self._index(slot), array, len(array)))

    def blob(self, slot: int) -> bytes:
        """The scalars of a complete slot, checksum verified. CorruptSlotError."""
        data, size = ctypes.c_void_p(), ctypes.c_uint64()
        check(engine().ff_slot_blob(self.address, self._index(slot), ctypes.byref(data), ctypes.byref(size)))
        return ctypes.string_at(data.value or 0, size.value) if size.value else b""

    def restamp(self, slot: int, epoch: int) -> None:
        """Carry a complete version over into `epoch`. CorruptSlotError if it is not complete."""
        check(engine().ff_slot_restamp(self.address, self._index(slot), epoch))

    def empty(self, slot: int) -> None:
        """Forget what the slot holds."""
        check(engine().ff_slot_empty(self.address, self._index(slot)))

    def corrupt(self, slot: int, payload_offset: int) -> None:
        """Fault injection: flip one bit of the payload."""
        check(engine().ff_slot_corrupt(self.address, self._index(slot), payload_offset))

    # ---- init journal
    # ---------------------------------------------------------------------------------------------------------

    def set_journal(self, data: bytes) -> None:
        """Replace the init journal. A process that dies in here leaves the old one. EngineError beyond the capacity."""
        check(engine().ff_journal_set(self.address, data, len(data)))

    def notes(self) -> memoryview:
        """NOTES_BYTES of writable memory for what a worker notes while an iteration runs: it outlives the worker.

        Zero in a new arena. Invalid once the arena is closed.
        """
        return memoryview((ctypes.c_ubyte * NOTES_BYTES).from_address(self.address + NOTES_OFFSET)).cast("B")

    def journal(self) -> bytes:
        """The init journal; empty if there is none yet. CorruptSlotError."""
        data, size = ctypes.c_void_p(), ctypes.c_uint64()
        check(engine().ff_journal_get(self.address, ctypes.byref(data), ctypes.byref(size)))
        return ctypes.string_at(data.value or 0, size.value) if size.value else b""

    def memory(self) -> memoryview:
        """All of its bytes. Invalid once it is closed."""
        return self._mapping.content()

    # ---- life
    # -----------------------------------------------------------------------------------------------------------------

    def _index(self, slot: int) -> int:
        if not 0 <= slot < self.layout.slots:
            raise EngineError(
                f"slot is {slot}, the arena of rank {self.layout.rank} has slots 0 to {self.layout.slots - 1}"
            )
        return slot

    def hold(self) -> None:
        """A writer uses the mapping: close() is refused until release()."""
        self._users += 1

    def release(self) -> None:
        """The writer is gone."""
        self._users -= 1

    @property
    def in_use(self) -> bool:
        """Somebody holds the mapping: close() would be refused."""
        return self._users > 0

    def before_close(self, user: object, closer: Callable[[], None]) -> None:
        """Call `closer`, one per user, before the memory is unmapped."""
        self._closers[user] = closer

    def close(self) -> None:
        """Unmap and close the descriptor. The memory is freed when its last descriptor and mapping are gone.
        Idempotent.
        """
        if self.fd < 0:
            return
        if self._users:
            raise EngineError(f"the arena of rank {self.layout.rank} is in use by a writer: close that first")
        for closer in self._closers.values():
            closer()
        self._mapping.close()
        os.close(self.fd)
        self.fd = -1


def slot_with(arena: Arena, epoch: int, version: int) -> int:
    """Index of the complete slot (epoch, version); raises CorruptSlotError if there is none."""
    index = arena.find(epoch, version)
    if index is not None:
        return index
    raise CorruptSlotError(
        f"no complete slot of version {version}, epoch {epoch} in the arena of rank {arena.layout.rank}"
    )
