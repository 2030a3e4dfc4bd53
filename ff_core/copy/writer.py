"""A worker's writer: live tensors into a slot of its own arena and on to its holders, from the engine's threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic

from ff_core.copy.arena import Arena, Segment, segment_array
from ff_core.copy.binding import ETIMEOUT, CWriterOptions, CWriterStats, Streams, check, connection, engine
from ff_core.copy.handle import EngineHandle
from ff_core.copy.page import StatusPage
from ff_core.errors import EngineError

_SLICE_S = 0.25  # see page.py
_CONNECT_MS = 10_000


@dataclass(frozen=True, slots=True)
class WriterStats:
    """Since the writer was opened. versions: committed.  *_ns: summed over threads.  holders_lost: now.

    yielded_ns, paced_ns: time that sending was held back for a collective; to be even or within the bandwidth limit.
    deadlines: acknowledged versions that had one (see set_window); deadlines_missed: those that came too late.
    zero_copy_bytes: of bytes_sent, those that left the slot without the kernel's copying them (TCP to other hosts,
    where kernel and adapter can).  streams: that carry versions now. Summed over holders.
    """

    versions: int
    bytes_copied: int
    bytes_sent: int
    copy_ns: int
    send_ns: int
    ack_wait_ns: int
    cpu_ns: int
    holders: int
    holders_lost: int
    yielded_ns: int
    paced_ns: int
    deadlines: int
    deadlines_missed: int
    zero_copy_bytes: int
    streams: int


class Writer(EngineHandle):
    """begin() -> seal() -> committed, once per version; cancel() at any time from any thread.

    A version is committed when the own slot is complete and every holder has acknowledged it: the engine then writes
    the page's `committed` word and rings `notify_fd`. Calls return at once unless they say "wait".
    """

    def __init__(
        self,
        arena: Arena,
        page: StatusPage | None = None,
        notify_fd: int = -1,
        *,
        bandwidth_bytes_per_s: int | None = None,
        checksum: bool = True,
        stall_timeout_s: float = 30.0,
    ) -> None:
        """bandwidth_bytes_per_s: per holder; None or 0: unlimited.  checksum=False is for debugging only.
        stall_timeout_s: a holder that takes no byte and acknowledges nothing for so long counts as lost.
        """
        options = CWriterOptions(
            arena.address,
            arena.size,
            page.address if page else None,
            notify_fd,
            bandwidth_bytes_per_s or 0,
            int(checksum),
            max(1, int(stall_timeout_s * 1000)),
        )
        handle = ctypes.c_void_p()
        check(engine().ff_writer_open(ctypes.byref(options), ctypes.byref(handle)))
        arena.hold()

        def after() -> None:
            arena.release()
            _ = page  # mapped until here

        super().__init__("writer", handle, engine().ff_writer_close, after)

    def prepare(self, device: int) -> None:
        """Open CUDA device `device` and begin to pin the slots for it, before there are tensors. Returns at once.

        Pinning takes 0.04 s a gigabyte, and the driver makes other calls wait meanwhile. EngineError: the device cannot
        be opened. Segments on another device undo it. Nothing may be in flight.
        """
        check(engine().ff_writer_prepare(self._open(), device))

    def set_segments(self, segments: Iterable[Segment]) -> None:
        """What to copy: (address, bytes, payload offset, device). Tensors must stay there. Nothing may be in flight."""
        array = segment_array(segments)
        check(engine().ff_writer_set_segments(self._open(), array, len(array)))

    def add_holder(self, fds: Streams, transport: str = "tcp", *, fewer: bool = False) -> None:
        """Send to the receiver behind this connected, authenticated stream socket too; over "tcp" also behind several,
        in the same order as over there. Takes the descriptors over.

        transport: "shm": the receiver is on this host, the socket a Unix one, and the receiver has the memory file of
        this writer's arena.  "ucx": the receiver expects it; waits for its answer, up to 10 s, and raises
        TransportError if it cannot be reached this way, CopyCancelled if a cancel comes meanwhile.  fewer: over "tcp",
        carry versions over as few of the streams as the first ones have shown to be nearly as fast. Nothing may be in
        flight.
        """
        given = connection(fds, transport, fewer=fewer)
        check(engine().ff_writer_add_holder(self._open(), ctypes.byref(given), _CONNECT_MS))

    def clear_holders(self) -> None:
        """Close and forget all holders. Nothing may be in flight."""
        check(engine().ff_writer_clear_holders(self._open()))

    def set_window(self, seconds: float) -> None:
        """Versions that begin from now on should be acknowledged within `seconds`. 0 (at first): as soon as possible.

        The time counts from when there is something to copy. On a CUDA device that is when the step has run there. A
        version is sent evenly until its time is over. Nothing is sent while the status page says that a collective
        runs, or while one of collective_begin() is in flight, unless the time is in danger.
        """
        if not 0 <= seconds < 1e6:
            raise EngineError(f"the window is {seconds} s, allowed are 0 to 1000000")
        check(engine().ff_writer_set_window(self._open(), int(seconds * 1e6)))

    def set_downloads(self, hold: float, spread: float = 0.0) -> None:
        """How versions that begin from now on leave a CUDA device; both in seconds, both 0 at first.

        They wait up to `hold` for go() before the device has to copy anything. Then their downloads are spread evenly
        over `spread`; 0: as fast as the device can. device_wait() ends both. Nothing on the host ever waits.
        """
        for name, seconds in (("hold", hold), ("spread", spread)):
            if not 0 <= seconds < 1e6:
                raise EngineError(f"the {name} is {seconds} s, allowed are 0 to 1000000")
        check(engine().ff_writer_set_downloads(self._open(), int(hold * 1e6), int(spread * 1e6)))

    def go(self) -> None:
        """Versions that are held (see set_downloads) wait no longer. Any thread."""
        check(engine().ff_writer_go(self._open()))

    def collective_begin(self, stream: int) -> int:
        """A collective of the training comes next on `stream` (as in begin()), to run long after it was launched.
        Returns a ticket for one of the two below; 0, which they take, too: no tensors lie on a device, or a cancel came
        meanwhile. Any thread; nothing waits for the device. EngineError: the driver refuses.
        """
        ticket = ctypes.c_uint64()
        check(engine().ff_writer_collective_begin(self._open(), stream, ctypes.byref(ticket)))
        return ticket.value

    def collective_end(self, ticket: int, stream: int) -> None:
        """The collective is behind what `stream`, the same or another one, has been given so far. Once per ticket."""
        check(engine().ff_writer_collective_end(self._open(), ticket, stream))

    def collective_forget(self, ticket: int) -> None:
        """The collective is over, or nobody will know when: it holds nothing up any more. Never after close()."""
        check(engine().ff_writer_collective_forget(self._open(), ticket))

    def begin(self, slot: int, epoch: int, version: int, stream: int = 0) -> None:
        """Start copying the live tensors into `slot` as (epoch, version).

        They must not change until wait_copied() returns, or on the device until what comes behind device_wait().

        stream: where tensors lie on a CUDA device, the stream whose work up to here makes the version
        (`torch.cuda.current_stream().cuda_stream`; 0: the default stream). Otherwise of no meaning.

        The previous version may still be on its way if it is sealed and in another slot.
        Raises EngineError; CopyCancelled during a cancel.
        """
        check(engine().ff_writer_begin(self._open(), slot, epoch, version, stream))

    def resend(self, slot: int, epoch: int, version: int) -> None:
        """Send a slot that is complete as (epoch, version) to all holders, and commit it. A damaged one never
        commits: see check().
        """
        check(engine().ff_writer_resend(self._open(), slot, epoch, version))

    def seal(self, version: int, blob: bytes) -> None:
        """Complete the version with its scalars, before or after its tensors are copied. CopyCancelled."""
        check(engine().ff_writer_seal(self._open(), version, blob, len(blob)))

    def wait_copied(self, version: int, timeout_s: float) -> None:
        """Wait until nobody reads the live tensors for `version` any more. TimeoutError; CopyCancelled: as it says."""
        self._in_slices(lambda ms: engine().ff_writer_wait_copied(self._open(), version, ms), timeout_s)

    def device_wait(self, version: int, stream: int, timeout_s: float) -> None:
        """Let later work on `stream` (as in begin()) change the live tensors.

        On the device that work waits for the copy of `version`; this call does not. Where all tensors are on the host,
        the same as wait_copied(). Raises TimeoutError, CopyCancelled.
        """
        self._in_slices(lambda ms: engine().ff_writer_device_wait(self._open(), version, stream, ms), timeout_s)

    def step_ended(self, version: int) -> bool:
        """Whether the work that makes `version`, on the stream given to begin(), has run on the device."""
        ended = ctypes.c_int32()
        check(engine().ff_writer_step_ended(self._open(), version, ctypes.byref(ended)))
        return bool(ended.value)

    @staticmethod
    def _in_slices(wait: Callable[[int], int], timeout_s: float) -> None:
        """Call `wait(milliseconds)` until it says something else than that the time is up, or it is."""
        end = monotonic() + timeout_s
        while True:
            left = end - monotonic()
            code = wait(int(max(0.0, min(left, _SLICE_S)) * 1000) + (left > 0))
            if code == ETIMEOUT and left > _SLICE_S:
                continue
            check(code)
            return

    def check(self) -> None:
        """Raise why versions in flight cannot commit (lost holder: EngineError, ProtocolError or TimeoutError;
        damaged slot:
        CorruptSlotError); return if nothing is wrong."""
        check(engine().ff_writer_check(self._open()))

    def cancel(self) -> None:
        """Abandon what is in flight, drop the holders. Then no engine thread touches tensors, slots or sockets."""
        check(engine().ff_writer_cancel(self._open()))

    def stats(self) -> WriterStats:
        stats = CWriterStats()
        check(engine().ff_writer_stats_get(self._open(), ctypes.byref(stats)))
        return WriterStats(**{name: getattr(stats, name) for name, *_ in CWriterStats._fields_})
