"""Checks of pacing where tensors and collectives are on a CUDA device; device_checks.py runs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ff_core.contract.activity import ACTIVITY_COLLECTIVE
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.writer import Writer
from ff_core.worker import collective
from ff_core.worker.collective import FollowedCollective
from tests.copy.cuda import Cuda
from tests.copy.rig import Live, Rig, eventually

SIZE = 3_000_000


class PacedRig(Rig):
    """A rank whose tensors are on the device, with one holder; its writer knows how fast it can be."""

    def __init__(self) -> None:
        super().__init__(sent=SIZE, local=0)
        self.cuda = Cuda()
        self.step, self.nccl = self.cuda.stream(), self.cuda.stream()
        self.base = self.cuda.allocate(SIZE)
        self.writer.set_segments([(self.base, SIZE, 0, 0)])
        self.connect(1)
        self.next, self.epoch = 0, 1
        self.window = 0.0
        self.at_full_speed(4)

    def at_full_speed(self, versions: int) -> None:
        """So many, from which the writer learns; the next one is paced."""
        self.writer.set_window(0.0)
        for _ in range(versions):
            self.begin()
            self.commit()
        self.writer.set_window(self.window)

    def begin(self) -> None:
        self.cuda.fill(self.base, self.next, SIZE, self.step)
        self.writer.begin(self.next % 2, self.epoch, self.next, self.step)
        self.writer.seal(self.next, b"")

    def commit(self) -> None:
        eventually(lambda: self.committed(self.epoch, self.next), f"commit of {self.next}")
        slot = self.holders[0].find(self.epoch, self.next)
        assert slot is not None and self.restored(self.holders[0], slot) == bytes([self.next]) * SIZE
        self.next += 1

    def yielded(self) -> int:
        return self.writer.stats().yielded_ns

    def close(self) -> None:
        self.writer.close()
        for stream in (self.step, self.nccl):
            self.cuda.synchronize(stream)
        self.cuda.free(self.base)


def _version(rig: PacedRig, let_go: Callable[[], None] | None, yields: bool) -> None:
    """One version; whether it yields, which it can only do before `let_go` is called."""
    rig.window = 3.0 if yields else 0.3
    rig.at_full_speed(1)  # had the one before missed its deadline, this one would not be paced
    before = rig.yielded()
    rig.begin()
    if yields:
        eventually(lambda: rig.yielded() > before, "yielding")
        assert not rig.committed(rig.epoch, rig.next)
    if let_go is not None and yields:
        let_go()
    rig.commit()
    if let_go is not None and not yields:
        let_go()
    assert yields or rig.yielded() == before


def collectives() -> None:
    """Sending yields while a collective is in flight on the device: not before its stream has come to it, not after its
    end, nor for one that was forgotten."""
    with PacedRig() as rig:
        writer, cuda = rig.writer, rig.cuda
        _version(rig, None, yields=False)

        let_go = cuda.hold(rig.nccl)  # the stream has other things to do first
        ticket = writer.collective_begin(rig.nccl)
        writer.collective_end(ticket, rig.nccl)
        _version(rig, let_go, yields=False)
        cuda.synchronize(rig.nccl)
        _version(rig, None, yields=False)

        ticket = writer.collective_begin(rig.nccl)
        let_go = cuda.hold(rig.nccl)
        writer.collective_end(ticket, rig.nccl)
        later = writer.collective_begin(rig.nccl)
        writer.collective_end(later, rig.nccl)
        cuda.fill(rig.base, 0, 1, rig.nccl)  # the step's stream is not held up
        _version(rig, let_go, yields=True)
        cuda.synchronize(rig.nccl)
        _version(rig, None, yields=False)

        ticket = writer.collective_begin(rig.step)  # it runs on a stream of its own, and nobody waits for it yet
        cuda.synchronize(rig.step)
        _version(rig, lambda: writer.collective_end(ticket, rig.nccl), yields=True)
        cuda.synchronize(rig.nccl)
        writer.collective_end(ticket, rig.nccl)  # a second time: nothing
        writer.collective_forget(ticket)
        _version(rig, None, yields=False)

        ticket = writer.collective_begin(rig.step)
        writer.collective_forget(ticket)
        _version(rig, None, yields=False)
        for _ in range(5000):  # a script that never waits for its own
            writer.collective_begin(rig.nccl)
        writer.cancel()  # a halt: they were aborted
        rig.epoch = 2
        rig.connect(2)
        rig.next = 0
        _version(rig, None, yields=False)
        rig.close()


def window_starts_with_the_step() -> None:
    """The time that a version may take counts from when the step has run: a device far behind its launches makes no
    deadline pass."""
    with PacedRig() as rig:
        rig.writer.set_window(3.0)
        rig.page.store("activity", ACTIVITY_COLLECTIVE)
        let_go = rig.cuda.hold(rig.step)
        before = rig.yielded()
        rig.begin()
        time.sleep(3.2)
        let_go()
        rig.commit()
        assert rig.yielded() > before, "the deadline had passed when the step was over"
        rig.close()


def spread() -> None:
    """Downloads take the time that they are given, until somebody is at the device wait, or they are cancelled."""
    size, seconds = 160 << 20, 1.0  # five pieces
    cuda = Cuda()
    stream, base = cuda.stream(), cuda.allocate(size)
    arena = Arena.create(ArenaLayout(5, size, 0, 4096, 4096, 1 << 20))
    writer = Writer(arena)
    writer.set_segments([(base, size, 0, 0)])
    ends: dict[str, Callable[[], None]] = {
        "time": lambda: None,
        "device wait": lambda: writer.device_wait(version, stream, 60),
        "cancel": writer.cancel,
    }
    for version, (way, end) in enumerate(ends.items()):
        cuda.fill(base, version + 1, size, stream)
        cuda.synchronize(stream)
        writer.set_downloads(0.0, seconds if way == "time" else 1000.0)
        begun = time.monotonic()
        writer.begin(version % 2, 1, version, stream)
        writer.seal(version, b"")
        eventually(lambda: writer.stats().bytes_copied > 0, "the first piece")
        assert arena.find(1, version) is None, f"{way}: all at once"
        end()
        if way == "cancel":
            continue
        eventually(lambda: arena.find(1, version) == version % 2, f"version {version}")  # noqa: B023 (called at once)
        if way == "time":
            assert time.monotonic() - begun >= 0.8 * seconds  # the last of five pieces begins then
    writer.close()
    arena.close()
    cuda.free(base)


def handles() -> None:
    """What the communication layer is given for a collective: its end counts once, dropping it forgets it, and a writer
    that is closed is asked no more."""
    with PacedRig() as rig:
        device: Any = "cuda:0"
        current = rig.step
        collective.step_stream = lambda _: current
        for way in ("ended", "ended twice", "forgotten", "dropped"):
            followed: FollowedCollective | None = FollowedCollective(rig.writer, device)
            assert followed is not None
            rig.cuda.synchronize(rig.step)
            if way == "ended":
                _version(rig, followed.end, yields=True)
            elif way == "ended twice":
                followed.end()
                current = rig.nccl
                let_go = rig.cuda.hold(rig.nccl)
                followed.end()
                current = rig.step
                rig.cuda.synchronize(rig.step)
                _version(rig, let_go, yields=False)
            elif way == "forgotten":
                followed.forget()
                followed.end()
            followed = None
            rig.cuda.synchronize(rig.step)
            _version(rig, None, yields=False)
        late, lost = FollowedCollective(rig.writer, device), FollowedCollective(rig.writer, device)
        child = os.fork()
        if child == 0:
            late.end()
            del lost
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        rig.close()
        late.end()
        del lost
        FollowedCollective(rig.writer, device).end()


def few_pieces_ahead() -> None:
    """A version leaves room for others on the way to the host: no more than three pieces of it are enqueued, until
    somebody is at the device wait, who does not wait for the device all the same."""
    size, most = 160 << 20, 96 << 20
    cuda = Cuda()
    stream, base, scratch = cuda.stream(), cuda.allocate(size), cuda.allocate(1 << 30)
    arena = Arena.create(ArenaLayout(5, size, 0, 4096, 4096, 1 << 20))
    writer = Writer(arena)
    writer.set_segments([(base, size, 0, 0)])
    for version, waited in enumerate((False, True)):
        cuda.fill(base, version + 1, size, stream)
        if waited:
            cuda.fill(scratch, 0, 1 << 30, stream)  # the step takes a while
        writer.begin(version % 2, 1, version, stream)
        writer.seal(version, b"")
        if waited:
            writer.device_wait(version, stream, 60)
            waiting = cuda.waiting_downloads()
            assert waiting in (None, size), f"{waiting} bytes were enqueued when the device wait let pass"
            cuda.fill(base, 0xEE, size, stream)
        while arena.find(1, version) != version % 2:
            writer.check()
            waiting = cuda.waiting_downloads()
            assert waited or waiting is None or waiting <= most, f"{waiting} bytes were enqueued"
        out = Live(size)
        arena.restore(version % 2, [(out.address, size, 0, -1)])
        assert bytes(out.memory) == bytes([version + 1]) * size
    writer.close()
    arena.close()
    cuda.synchronize(stream)
    for address in (base, scratch):
        cuda.free(address)
