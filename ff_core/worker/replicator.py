"""A worker's copies: its own arena, the engine's writer, and the connections to its holders.

Decides which slot a version goes to and mends connections. When something is copied, `Training` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ff_core.config.schema import FailoverConfig
from ff_core.contract.adapter import TensorSpec
from ff_core.contract.stamps import epoch_of, version_of
from ff_core.copy.arena import slot_with
from ff_core.copy.binding import CopyCancelled, TransportError
from ff_core.copy.connect import connect
from ff_core.copy.page import StatusPage
from ff_core.copy.transports import StreamChoice, candidates
from ff_core.errors import CorruptSlotError, EngineError, ProtocolError
from ff_core.state.device import DeviceClock, captured, device_of, step_stream, wait_for_stream, wait_until_idle
from ff_core.state.razor import Plan
from ff_core.worker.collective import FollowedCollective
from ff_core.worker.engine import CopyEngine
from ff_core.worker.pacing import Clock, CopyWindow, HostClock

_CONNECT_S = 30.0
#: How long a copy waits for the next forward pass. Between a step and that pass the device often has nothing queued.
#: There transfers at full speed make each call of the training thread slow. A version is in danger for as long.
_HELD_S = 0.05


class Replicator:
    """Not thread-safe but for `cancel`, which the watchdog may call at any time, and `collective_begins`."""

    def __init__(
        self,
        rank: int,
        plan: Plan,
        engine: CopyEngine,
        page: StatusPage,
        secret: bytes,
        config: FailoverConfig,
        streams: StreamChoice,
    ) -> None:
        self._rank, self._plan, self._page, self._secret = rank, plan, page, secret
        self.arena, self._writer = engine.arena, engine.writer
        candidates(config.transport)  # complains early of one that there is not
        self._wanted = config.transport
        self._streams = streams
        self._transports: set[str] = set()
        self._device = device_of(plan)
        self.clock: Clock = DeviceClock(self._device) if self._device is not None else HostClock()
        self._paced = config.pacing
        self._window = CopyWindow(self.clock) if config.pacing or self._device is not None else None
        self._writer.set_segments([segment.for_engine() for segment in plan.segments])
        self._holders: list[tuple[str, int]] = []
        self.newest = -1  # newest version begun in this epoch
        self.recommitted = False  # and it was made durable again, not copied behind its step
        self._holds = False  # the newest copy waits for the next forward pass, or did
        self._broken = False  # a connection that broke has not been made again yet
        self._newest_slot = -1  # where it is being written: incomplete, yet not free
        self._epoch = 0
        self._blobs: dict[int, bytes] = {}

    @property
    def specs(self) -> Sequence[TensorSpec]:
        """All tensors of the rank's state."""
        return self._plan.specs

    def connect(self, holders: Sequence[Sequence[Any]], epoch: int) -> None:
        """Connect to the holders' agents [[node, host, port], ...]. Nothing is in flight (after open or cancel)."""
        self._epoch, self.newest, self._newest_slot, self._broken = epoch, -1, -1, False
        self._holders = [(host, port) for _, host, port in holders]
        self._connect_all()

    def _connect_all(self) -> None:
        self._writer.clear_holders()
        self._transports.clear()
        for address in self._holders:
            hello = {"rank": self._rank, "kind": "replica", "epoch": self._epoch}
            connection = connect(address, self._secret, hello, _CONNECT_S, self._wanted, self.arena.fd, self._streams)
            name, fewer = connection.name, self._streams.adaptive and connection.transport == "tcp"
            try:
                self._writer.add_holder(connection.detach(), connection.transport, fewer=fewer)
            except (CopyCancelled, TransportError):
                raise
            except EngineError as error:  # the holder went away while the two were getting to know each other
                raise ConnectionError(str(error)) from error
            self._transports.add(name)

    @property
    def transport(self) -> str:
        """How holders are reached: "tcp", "tcp (3 streams)", "shm", "ucx", several of them; "" without holders."""
        return " and ".join(sorted(self._transports))

    def begin(self, version: int, *, held: bool = False) -> None:
        """Start copying the live tensors as `version`. Returns at once.

        On a CUDA device, `version` is what the work queued on the current stream so far produces.
        held: the copy waits for forward_begins(), but not for long, and does not go at full speed: transfers make
        calls of the training thread and kernels slow.
        """
        slot = self._slot_for(version)
        if self._device is not None:
            spread = self._window.downloaded_s() if self._window is not None else 0.0
            self._writer.set_downloads(*((_HELD_S, spread) if held else (0.0, 0.0)))
            self._holds = held
        if self._window is not None and self._paced:
            self._writer.set_window(self._window.sent_s())
        self._writer.begin(slot, self._epoch, version, step_stream(self._device))
        if self._window is not None:
            self._window.begun()
        self.newest, self._newest_slot, self.recommitted = version, slot, False

    def seal(self, version: int, blob: bytes) -> None:
        """Complete `version` with its scalars, if it was begun.

        The scalars are remembered, too: a survivor that keeps its live tensors takes them from here. Older ones are
        those of the newest copy.
        """
        self._blobs = {v: old for v, old in self._blobs.items() if v >= self.newest}
        self._blobs[version] = blob
        if version == self.newest:
            self._writer.seal(version, blob)

    def recommit(self, version: int) -> None:
        """After a verdict: make `version` durable again.

        It is sent from the own slot if it is whole there, else copied anew from the live tensors.
        """
        infos = self.arena.slot_infos()
        for index, info in enumerate(infos):
            whole = info.full or not self._plan.local_bytes
            if info.complete and (info.epoch, info.version) == (self._epoch, version) and whole:
                self._writer.resend(index, self._epoch, version)
                self.newest, self._newest_slot, self.recommitted = version, index, True
                return
        self.begin(version)
        self.recommitted = True
        self._writer.seal(version, self._blobs[version])

    def _slot_for(self, version: int) -> int:
        """The slot to write: the same version's, else an incomplete one, else the older one.

        Raises EngineError if W has not passed the older one.
        """
        infos = self.arena.slot_infos()
        for index, info in enumerate(infos):
            if info.complete and info.version == version:
                return index
        for index, info in enumerate(infos):
            if not info.complete and index != self._newest_slot:
                return index
        index = min(range(len(infos)), key=lambda i: infos[i].version)
        if infos[index].version >= self.committed_version():
            raise EngineError(
                f"version {version}: both slots hold versions that are not replaceable yet "
                f"({[i.version for i in infos]}, W = {self.committed_version()})"
            )
        return index

    def committed_version(self) -> int:
        """W of this epoch as the agent published it; -1 if none yet."""
        word = self._page.load("w_stamp")
        return version_of(word) if word and epoch_of(word) == self._epoch else -1

    def blob(self, version: int) -> bytes:
        """Scalars of a sealed version, from this process's memory."""
        return self._blobs[version]

    def keep_blob(self, version: int, blob: bytes) -> None:
        """The scalars that a restore brought; anything newer did not happen."""
        self._blobs = {v: b for v, b in self._blobs.items() if v <= version}
        self._blobs[version] = blob

    def restore(self, epoch: int, version: int) -> tuple[bytes, int]:
        """Verified slot (epoch, version) into the live tensors; returns its scalars and the bytes written.

        A slot without the local part restores UNIQUE tensors only. Raises CorruptSlotError; the bad slot is emptied.
        """
        index = slot_with(self.arena, epoch, version)
        full = self.arena.slot_infos()[index].full
        wanted = [s for s in self._plan.segments if full or s.offset < self._plan.sent_bytes]
        try:
            self.arena.restore(index, [segment.for_engine() for segment in wanted])
            return bytes(self.arena.blob(index)), sum(segment.bytes for segment in wanted)
        except Exception:
            self.arena.empty(index)
            raise

    @property
    def on_device(self) -> bool:
        """What is copied lies on a CUDA device, whose time `clock` tells."""
        return self._device is not None

    def step_ended(self, version: int) -> bool:
        """Whether the live tensors hold `version` already: on a CUDA device its step may still be queued."""
        return self._writer.step_ended(version)

    def wait_idle(self) -> None:
        """Until the device has run what it was given before this call. Any thread.

        Returns too where the device is broken, or its work is being captured: the training thread meets that itself.
        """
        if self._device is not None:
            with suppress(RuntimeError):
                wait_until_idle(self._device)

    def wait_rebuilt(self) -> None:
        """Until the live tensors hold what collectives of the current stream bring them.

        On a CUDA device these return before they have run. A death in between would leave tensors that look whole and
        are not.
        """
        wait_for_stream(self._device)

    def wait_copied(self, timeout_s: float) -> None:
        """After this the caller may change the live tensors: the newest version's copy has left them.

        On the host this waits for the copy. On a CUDA device the current stream waits instead. Raises TimeoutError.
        """
        if self.newest >= 0:
            self._writer.device_wait(self.newest, step_stream(self._device), timeout_s)

    def forward_begins(self) -> None:
        """The training thread is about to give the device a forward pass: copies that are held go on."""
        if self._holds:  # once for a version, not with each micro-batch
            self._holds = False
            self._writer.go()

    def at_gate(self) -> None:
        """The training thread comes to the commit gate: so long the newest version had to get away."""
        if self._window is not None:
            self._window.gate()

    def collective_begins(self) -> FollowedCollective | None:
        """A collective is about to be launched on the current stream. The device runs it whenever it comes to it.

        None: nobody paces by it. A graph's collectives are not followed: they run whenever the graph is replayed.
        """
        if not self._paced or self._device is None or captured(self._device):
            return None
        return FollowedCollective(self._writer, self._device)

    def mend(self, live: int, unless_halted: Callable[[Callable[[], None]], None]) -> str:
        """Versions in flight cannot commit although nobody died: put it right. Returns what was done, or "".

        A holder's broken connection is made again. An own slot found damaged on its way out is copied anew from the
        live tensors. Only the gate may call this: there they are whole.

        live: their version. If it is not the newest copied one, then that one exists in its slot only. It is waited for
        there. If the slot is damaged this raises EngineError: another process must take the rank's place.

        unless_halted: runs what begins to copy, with no halt in between. What it raises goes on to the caller. So do
        CopyCancelled and other errors of the engine.
        """
        ahead = live != self.newest
        try:
            self._writer.check()
            if not self._broken:
                return ""
            done, damaged = "a connection to a replica that had broken was made again", False
        except CorruptSlotError as error:
            if ahead:
                raise EngineError(
                    f"version {self.newest}, which is to be sent again, was damaged in the own slot ({error}), and the "
                    f"tensors are at version {live} already"
                ) from error
            done, damaged = f"the own slot was damaged ({error}) and was copied anew", True
        except (EngineError, ProtocolError, TimeoutError) as error:
            done, damaged = f"a connection to a replica broke ({error}) and was made again", False
        if ahead and not self._is_in_slot():
            return ""  # a cancel now would leave it nowhere
        self._writer.cancel()
        version, slot = self.newest, self._newest_slot
        if damaged and slot >= 0:
            unless_halted(lambda: self.arena.empty(slot))
        self._broken = True
        try:
            self._connect_all()
        except (OSError, ProtocolError, TransportError):
            return ""  # tried again at the next look; the controller hears of a lost node by itself
        if version >= 0:
            unless_halted(lambda: self.recommit(version))
        self._broken = False
        return done

    def _is_in_slot(self) -> bool:
        info = self.arena.slot_infos()[self._newest_slot]
        return info.complete and (info.epoch, info.version) == (self._epoch, self.newest)

    def stats(self) -> Any:
        return self._writer.stats()

    def cancel(self) -> None:
        """Stop and join everything that reads live tensors, slots or sockets."""
        if self._window is not None:
            self._window.forget()
        self._writer.cancel()

    def close(self) -> None:
        self._writer.close()
