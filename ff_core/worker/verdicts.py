"""The verdicts that this rank gets: which version to go back to, and where its own state of that version is."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from ff_core.copy.arena import Arena, slot_with
from ff_core.errors import CorruptSlotError, FailoverInterrupt
from ff_core.worker import scalars
from ff_core.worker.parts import WorkerParts

if TYPE_CHECKING:
    from ff_core.config.schema import FailoverConfig
    from ff_core.contract.messages import Message

_LOOK_S = 0.01


class Verdict:
    """One, as this rank hears it: message "go_on".

    filled: its slot is being streamed in, and is not known to be complete yet.  fds: its arena, for who has none.
    resumes: the job has begun from this version, on a disk.
    constants: file with the frozen state, where no peer has it; "" elsewhere.
    """

    def __init__(self, message: Message, fds: list[int]) -> None:
        self.message, self.fds = message, fds
        self.epoch: int = message["epoch"]
        self.version: int = message["version"]
        self.keeps_live: bool = message["source"] == "live"
        self.filled: bool = message["filled"]
        self.resumes: bool = message["resumes"]
        self.constants: str = message.get("constants") or ""

    def close(self) -> None:
        """Its descriptors are not needed."""
        for fd in self.fds:
            os.close(fd)


class Verdicts:
    """Waits for them, in a survivor or a newcomer."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self._peeked: Verdict | None = None
        self._resumes = False

    def next(self, *, newcomer: bool) -> Verdict:
        """The verdict of the newest halt. A newcomer's first one has no halt of its own."""
        fence, peeked = self._parts.fence, self._peeked
        self._peeked = None
        if peeked is not None:
            if fence.halted() is None:
                return peeked
            peeked.close()

        def wanted(message: Message) -> bool:
            halted = fence.halted()
            if halted is None:
                return newcomer and bool(message["epoch"] == fence.epoch)
            return bool(message["epoch"] == halted)

        verdict = Verdict(*self._parts.inbox.take("go_on", wanted, lambda: None))
        self._resumes = verdict.resumes
        return verdict

    def wait_filled(self, verdict: Verdict, timeout_s: float) -> None:
        """Until the slot that the verdict names is complete. Raises FailoverInterrupt, TimeoutError."""
        if verdict.filled:
            self._parts.inbox.take(
                "slot_ready", lambda m: bool(m["epoch"] == verdict.epoch), self._parts.fence.check, timeout_s
            )
            verdict.filled = False

    def refuse_slot(self, error: CorruptSlotError, timeout_s: float) -> None:
        """The slot that the verdict names is damaged: say so, and wait for the halt that this brings."""
        parts = self._parts
        parts.link.send("bad_slot", rank=parts.rank, epoch=parts.fence.epoch, reason=str(error))
        parts.fence.wait_halted(timeout_s)

    def left(self, version: int, begins: bool) -> None:
        """See AdapterSession. With every failover the controller is told, until it ends this process."""
        parts, told = self._parts, -1
        while not (begins and self._resumes):
            epoch = parts.fence.halted() or parts.fence.epoch
            if epoch > told:
                told = epoch
                parts.link.send("left", rank=parts.rank, epoch=epoch, version=version)
            time.sleep(_LOOK_S)

    def peek(self, config: FailoverConfig) -> dict[str, Any]:
        """A newcomer, before it joins: scalars of the version that it begins from, unless another failure comes."""
        while True:
            try:
                return self._peek(config.join_timeout_s)
            except FailoverInterrupt:
                continue  # a new verdict is on its way
            except CorruptSlotError as error:
                self.refuse_slot(error, config.verdict_timeout_s)

    def _peek(self, timeout_s: float) -> dict[str, Any]:
        verdict = self.next(newcomer=True)
        self._parts.fence.begin_epoch(verdict.epoch)
        self._peeked = verdict
        self.wait_filled(verdict, timeout_s)
        arena = Arena.from_fd(os.dup(verdict.fds[0]))
        try:
            return scalars.decode(arena.blob(slot_with(arena, verdict.epoch, verdict.version)))
        finally:
            arena.close()
