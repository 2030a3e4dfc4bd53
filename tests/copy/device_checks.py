"""Checks of the engine with tensors on a CUDA device, each in a process of its own: `device_checks.py NAME`.

They run on a real GPU, and on the stand-in (tests/csrc/cuda_standin.h) where there is none: see test_device.py.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ff_core.copy.arena import Arena, ArenaLayout, Segment
from ff_core.copy.binding import CopyCancelled
from ff_core.copy.writer import Writer
from ff_core.errors import CorruptSlotError, EngineError
from tests.copy import device_pacing
from tests.copy.cuda import Cuda
from tests.copy.rig import Live, eventually

CHUNK = 64 << 10
SENT, LOCAL = 9 << 20, (3 << 20) + 4097


class DeviceRig:
    """A payload made of device tensors (some large, many small), host tensors and holes, and its writer."""

    def __init__(
        self, seed: int, sent: int = SENT, local: int = LOCAL, host: float = 0.2, prepared: bool = False
    ) -> None:
        rng = random.Random(seed)
        self.cuda = Cuda()
        self.stream = self.cuda.stream()
        self.size = sent + local
        self.base = self.cuda.allocate(self.size + 64)
        self.arena = Arena.create(ArenaLayout(5, sent, local, 4096, 4096, CHUNK))
        self.host = Live(self.size, seed)
        self.segments: list[Segment] = []
        at = 0
        while at < self.size:
            kind = rng.random()
            longest = 3 << 20 if kind < 0.05 else 200_000 if kind < 0.2 else 5_000
            size = min(rng.randrange(1, longest), self.size - at)
            kind = rng.random()
            if kind < 0.7:
                self.segments.append((self.base + at, size, at, 0))
            elif kind < 0.7 + host:
                self.segments.append((self.host.address + at, size, at, -1))
            at += size if rng.random() < 0.5 else -(-size // 64) * 64
        rng.shuffle(self.segments)
        self.writer = Writer(self.arena)
        if prepared:
            self.writer.prepare(0)
        self.writer.set_segments(self.segments)

    def expected(self, device: bytes) -> bytes:
        """The payload when the device tensors hold `device`."""
        out = bytearray(self.size)
        for _, size, offset, where in self.segments:
            source = device if where == 0 else self.host.memory
            out[offset : offset + size] = source[offset : offset + size]
        return bytes(out)

    def payload(self, slot: int) -> bytes:
        """What the slot holds, verified."""
        out = Live(self.size)
        self.arena.restore(slot, [(out.address, self.size, 0, -1)])
        return bytes(out.memory)

    def complete(self, slot: int, epoch: int, version: int) -> None:
        eventually(lambda: self.failed() or self.arena.find(epoch, version) == slot, f"version {version}")

    def failed(self) -> bool:
        self.writer.check()
        return False

    def close(self) -> None:
        self.writer.close()
        self.arena.close()
        self.cuda.synchronize(self.stream)
        self.cuda.free(self.base)


def round_trip() -> None:
    """Any cut of device and host memory, with holes, arrives bit by bit and comes back bit by bit."""
    for seed in range(4):
        rig = DeviceRig(seed, prepared=seed % 2 == 1)
        content = random.Random(seed + 100).randbytes(rig.size)
        rig.cuda.write(rig.base, content, rig.stream)
        for version in range(3):
            rig.writer.begin(version % 2, 1, version, rig.stream)
            rig.writer.seal(version, b"scalars")
            rig.writer.wait_copied(version, 60)
            rig.complete(version % 2, 1, version)
        want = rig.expected(content)
        assert rig.payload(0) == rig.payload(1) == want
        before = bytes(rig.host.memory)
        rig.host.fill(seed + 7)
        rig.cuda.fill(rig.base, 0xAA, rig.size, rig.stream)  # not waited for: restore() must order itself behind it
        rig.arena.restore(0, rig.segments)
        back = rig.cuda.read(rig.base, rig.size, rig.stream)
        for _, size, offset, where in rig.segments:
            got = back if where == 0 else rig.host.memory
            source = content if where == 0 else before
            assert got[offset : offset + size] == source[offset : offset + size], (seed, size, offset, where)
        rig.close()


def prepared_for_nothing() -> None:
    """A writer that has opened a device may be closed at once, or be told of one that there is not; it goes on."""
    arena = Arena.create(ArenaLayout(5, SENT, LOCAL, 4096, 4096, CHUNK))
    for _ in range(3):
        with Writer(arena) as writer:
            writer.prepare(0)
            try:
                writer.prepare(1000)
            except EngineError as error:
                assert "1000" in str(error), error
            else:
                raise AssertionError("there is no device 1000")
            live = Live(SENT)
            writer.set_segments([(live.address, SENT, 0, -1)])
            writer.begin(0, 1, 1)
            writer.seal(1, b"")
            eventually(lambda: arena.find(1, 1) == 0, "version 1")
        arena.empty(0)
    arena.close()


def ordering() -> None:
    """A step that overwrites every tensor right behind the device wait does not change the version before.

    The slow step before it is waited for.
    """
    rig = DeviceRig(11, host=0)
    scratch = rig.cuda.allocate(256 << 20)
    for version in range(40):
        for _ in range(6):  # the step takes its time
            rig.cuda.fill(scratch, version, 256 << 20 if rig.cuda.left() is None else 4096, rig.stream)
        rig.cuda.fill(rig.base, version + 1, rig.size, rig.stream)
        rig.writer.begin(version % 2, 1, version, rig.stream)
        rig.writer.seal(version, b"")
        rig.writer.device_wait(version, rig.stream, 60)
        rig.cuda.fill(rig.base, 0xEE, rig.size, rig.stream)
        rig.complete(version % 2, 1, version)
        want = rig.expected(bytes([version + 1]) * rig.size)
        assert rig.payload(version % 2) == want, f"version {version} was changed by the next step"
    rig.cuda.free(scratch)
    rig.close()


def device_wait_is_needed() -> None:
    """The check above can fail: without the device wait a slot does get the next step's bytes."""
    rig = DeviceRig(11, host=0)
    for version in range(400):
        rig.cuda.fill(rig.base, 1, rig.size, rig.stream)
        rig.writer.begin(version % 2, 1, version, rig.stream)
        rig.writer.seal(version, b"")
        rig.cuda.fill(rig.base, 0xEE, rig.size, rig.stream)
        rig.complete(version % 2, 1, version)
        if rig.payload(version % 2) != rig.expected(b"\1" * rig.size):
            rig.close()
            return
    raise AssertionError("400 versions without a device wait, and none was torn")


def cancel() -> None:
    """After a cancel nothing reads tensors or slots, whenever it comes; the next version is whole."""
    rng = random.Random(3)
    rig = DeviceRig(12)
    for epoch in range(1, 20):
        watchdog = threading.Timer(rng.random() * 0.02, rig.writer.cancel)
        watchdog.start()
        try:
            rig.writer.begin(0, epoch, 1, rig.stream)
            rig.writer.device_wait(1, rig.stream, 60)
            rig.writer.seal(1, b"x")
        except (CopyCancelled, EngineError) as error:
            assert "cancel" in str(error) or "not in flight" in str(error), error
        watchdog.join()
        rig.writer.cancel()
        rig.cuda.fill(rig.base, epoch, rig.size, rig.stream)
        rig.host.fill(epoch)
        rig.writer.begin(1, epoch, 2, rig.stream)
        rig.writer.seal(2, b"y")
        rig.complete(1, epoch, 2)
        assert rig.payload(1) == rig.expected(bytes([epoch]) * rig.size)
        rig.writer.cancel()
    rig.close()


def corrupt() -> None:
    """Nothing of a damaged slot reaches the device."""
    rig = DeviceRig(13)
    rig.cuda.fill(rig.base, 1, rig.size, rig.stream)
    rig.writer.begin(0, 1, 1, rig.stream)
    rig.writer.seal(1, b"")
    rig.complete(0, 1, 1)
    rig.cuda.fill(rig.base, 2, rig.size, rig.stream)
    for offset in (0, SENT - 1, rig.size - 1):
        rig.arena.corrupt(0, offset)
        try:
            rig.arena.restore(0, rig.segments)
        except CorruptSlotError as error:
            assert "checksum of chunk" in str(error)
        else:
            raise AssertionError("a flipped bit was restored")
        assert rig.cuda.read(rig.base, rig.size, rig.stream) == b"\2" * rig.size
        rig.arena.corrupt(0, offset)
    rig.arena.restore(0, rig.segments)
    rig.close()


def reopened() -> None:
    """Writers come and go, segments are set again: everything taken from the device is given back."""
    rig = DeviceRig(14)
    for version in range(5):
        rig.writer.begin(version % 2, 1, version, rig.stream)
        rig.writer.seal(version, b"")
        rig.complete(version % 2, 1, version)
        if version == 1:  # both slots are pinned by now
            before = rig.cuda.left()
        rig.writer.set_segments(rig.segments[: 20 * version])
        rig.writer.set_segments(rig.segments)
    assert rig.cuda.left() == before
    rig.writer.set_segments([(rig.host.address, 10, 0, -1)])
    rig.writer.begin(0, 1, 5)
    rig.writer.device_wait(5, 0, 60)
    rig.writer.seal(5, b"")
    rig.complete(0, 1, 5)
    assert rig.writer.step_ended(5)
    rig.close()
    if before is not None:
        assert rig.cuda.left() == [1, 1, 0, 0]  # this test's own context and stream


def failing() -> None:
    """The driver reports an error in the middle: the version fails with its name, a cancel makes all well again."""
    rig = DeviceRig(15)
    rig.writer.begin(0, 1, 1, rig.stream)
    rig.writer.seal(1, b"")
    try:
        eventually(lambda: rig.failed() or rig.arena.find(1, 1) == 0, "the failure")
        raise AssertionError("the driver's error went unnoticed")
    except EngineError as error:
        assert "CUDA_ERROR_UNKNOWN" in str(error) and "device" in str(error), error
    assert not rig.arena.slot_info(0).complete
    rig.writer.device_wait(1, rig.stream, 60)  # nothing reads the tensors: they may change
    rig.writer.cancel()
    rig.writer.begin(0, 2, 1, rig.stream)
    rig.writer.seal(1, b"")
    rig.complete(0, 2, 1)
    rig.close()


def graph_capture() -> None:
    """What the engine does while the script captures a CUDA graph neither fails nor spoils the capture."""
    rig = DeviceRig(16)
    rig.cuda.fill(rig.base, 3, rig.size, rig.stream)
    for version in range(2):  # the first one pins slots
        with rig.cuda.capturing():
            rig.writer.begin(version % 2, 1, version, rig.stream)
            rig.writer.seal(version, b"")
            rig.writer.device_wait(version, rig.stream, 60)
            rig.complete(version % 2, 1, version)
    assert rig.payload(0) == rig.payload(1) == rig.expected(b"\3" * rig.size)
    rig.close()


def held() -> None:
    """A version that is held goes on when it is told to, at the device wait, when its time is over, or is cancelled."""
    rig = DeviceRig(17)
    rig.cuda.fill(rig.base, 5, rig.size, rig.stream)
    ends: dict[str, Callable[[], None]] = {
        "go": rig.writer.go,
        "device wait": lambda: rig.writer.device_wait(version, rig.stream, 60),
        "time": lambda: None,
        "cancel": rig.writer.cancel,
    }
    for version, (way, end) in enumerate(ends.items()):
        rig.writer.set_downloads(0.3 if way == "time" else 1000.0)
        rig.writer.begin(version % 2, 1, version, rig.stream)
        rig.writer.seal(version, b"")
        rig.cuda.synchronize(rig.stream)
        before = rig.writer.stats().bytes_copied
        time.sleep(0.1)
        assert rig.writer.stats().bytes_copied == before and rig.arena.find(1, version) is None, way
        end()
        if way != "cancel":
            rig.complete(version % 2, 1, version)
            assert rig.payload(version % 2) == rig.expected(b"\5" * rig.size), way
    rig.close()


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        *(round_trip, prepared_for_nothing, ordering, device_wait_is_needed, cancel, corrupt, reopened, held),
        *(graph_capture, failing),
        *(device_pacing.few_pieces_ahead, device_pacing.collectives, device_pacing.handles, device_pacing.spread),
        device_pacing.window_starts_with_the_step,
    )
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
    print("ok")
