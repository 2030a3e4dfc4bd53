"""From a halt back to training, in a survivor or a newcomer: docs/protocol.md, section 4, the worker's column.

drop the iteration -> drop groups -> verdict -> restore what must be -> ready -> regroup -> rebuild -> scalars ->
copies again -> go.
A later halt interrupts any of it; then it starts over.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from ff_core.contract.adapter import Held
from ff_core.copy.arena import Arena, slot_with
from ff_core.errors import CorruptSlotError, EngineError, FailoverInterrupt, ProtocolError
from ff_core.state import codec, registered, rng

if TYPE_CHECKING:
    from ff_core.contract.messages import Message
    from ff_core.state.razor import Plan
    from ff_core.worker.session import Failover


class Recovery:
    """One worker's recoveries, one after another."""

    def __init__(self, owner: Failover) -> None:
        self._owner = owner
        self._peeked: _Verdict | None = None

    @staticmethod
    def has_constant(plan: Plan) -> bool:
        """Whether some state lies in no slot and can only come from a living process."""
        return plan.totals[Held.CONSTANT] > 0

    def survive(self) -> int:
        """A survivor, interrupted: returns v*."""
        adapter = self._owner.adapter
        assert adapter is not None
        return self._until_resumed(adapter.drop_iteration)

    def join(self) -> int:
        """A newcomer whose script has built everything: returns v*."""
        return self._until_resumed(lambda: None)

    def peek(self) -> dict[str, Any]:
        """A newcomer, before it joins: scalars of the version it will begin from, unless another failure comes before
        that."""
        while True:
            try:
                return self._peek()
            except FailoverInterrupt:
                continue  # a new verdict is on its way
            except CorruptSlotError as error:
                self._report(error)

    def _peek(self) -> dict[str, Any]:
        owner, verdict = self._owner, self._verdict()
        owner.fence.begin_epoch(verdict.epoch)
        self._peeked = verdict
        self._wait_filled(verdict)
        arena = Arena.from_fd(os.dup(verdict.fds[0]))
        try:
            slot = slot_with(arena, verdict.epoch, verdict.version)
            blob: dict[str, Any] = codec.decode(arena.blob(slot))
            return blob
        finally:
            arena.close()

    def _until_resumed(self, drop: Any) -> int:
        while True:
            drop()
            version = self._attempt()  # its frame, and with it the interrupt's traceback, is gone when it returns
            if version is not None:
                return version

    def _attempt(self) -> int | None:
        try:
            return self._once()
        except FailoverInterrupt:
            return None
        except CorruptSlotError as error:
            self._report(error)
            return None
        except (OSError, EngineError, ProtocolError, TimeoutError):
            # a holder's node died after the verdict, or it went on to a newer epoch: then a halt is on its way
            if not self._owner.fence.wait_halted(self._owner.config.verdict_timeout_s):
                raise
            return None

    def _report(self, error: CorruptSlotError) -> None:
        owner = self._owner
        owner.link.send("bad_slot", rank=owner.rank, epoch=owner.epoch, reason=str(error))
        owner.fence.wait_halted(owner.config.verdict_timeout_s)

    def _once(self) -> int:
        owner = self._owner
        assert owner.registry is not None and owner.adapter is not None
        if not owner.is_newcomer:
            owner.registry.drop()
        verdict = self._verdict()
        epoch, version, message = verdict.epoch, verdict.version, verdict.message
        if owner.replicator is None:
            owner.open_replicator(verdict.fds)
        else:
            verdict.close()
        assert owner.replicator is not None
        owner.fence.begin_epoch(epoch)
        restored = self._restore(verdict)
        owner.link.send("ready", rank=owner.rank, epoch=epoch, restored_bytes=restored, at=time.time())
        blob = codec.decode(owner.replicator.blob(version))
        owner.registry.make_late_groups(blob["late_groups"])
        owner.inbox.take("regroup", lambda m: bool(m["epoch"] == epoch), owner.check)
        clock = [time.perf_counter()]
        owner.registry.regroup(epoch)
        clock.append(time.perf_counter())
        owner.adapter.rebuild(message.get("source_rank"), list(message["newcomers"]), list(message["restored"]))
        owner.replicator.wait_rebuilt()  # before anybody hears that this rank is whole
        clock.append(time.perf_counter())
        self._load(blob)
        owner.protection = message["coverage"]
        owner.replicator.connect(message["holders"], epoch)
        owner.fence.resume(version, owner.replicator.recommit)
        clock.append(time.perf_counter())
        if owner.is_newcomer:
            owner.resumed_as_newcomer(version)
        names = ("regroup", "rebuild", "scalars")
        owner.link.send(
            "resumed",
            rank=owner.rank,
            epoch=epoch,
            timings={name: b - a for name, a, b in zip(names, clock, clock[1:], strict=False)},
        )
        return version

    def _verdict(self) -> _Verdict:
        """The verdict of the newest halt. A newcomer's first one has no halt of its own."""
        owner, peeked = self._owner, self._peeked
        self._peeked = None
        if peeked is not None:
            if owner.fence.halted() is None:
                return peeked
            peeked.close()

        def wanted(message: Message) -> bool:
            halted = owner.fence.halted()
            if halted is None:
                return bool(message["epoch"] == owner.fence.epoch) if owner.is_newcomer else False
            return bool(message["epoch"] == halted)

        return _Verdict(*owner.inbox.take("go_on", wanted, lambda: None))

    def _wait_filled(self, verdict: _Verdict) -> None:
        if verdict.filled:
            owner = self._owner
            owner.inbox.take(
                "slot_ready", lambda m: bool(m["epoch"] == verdict.epoch), owner.check, owner.config.join_timeout_s
            )
            verdict.filled = False

    def _restore(self, verdict: _Verdict) -> int:
        owner, version = self._owner, verdict.version
        assert owner.replicator is not None
        if verdict.keeps_live:
            owner.replicator.keep_blob(version, owner.replicator.blob(version))
            return 0
        self._wait_filled(verdict)
        owner.fence.tear()
        blob, restored = owner.replicator.restore(verdict.epoch, version)
        owner.replicator.keep_blob(version, blob)
        return restored

    def _load(self, blob: dict[str, Any]) -> None:
        owner = self._owner
        assert owner.adapter is not None
        owner.adapter.load_scalars(blob["adapter"])
        registered.load(blob["registered"])
        rng.restore(blob["rng"])  # last: loading may draw numbers


class _Verdict:
    """A verdict as this rank hears it: message "go_on".

    filled: its slot is being streamed in and not known to be complete yet.
    """

    def __init__(self, message: Message, fds: list[int]) -> None:
        self.message, self.fds = message, fds
        self.epoch: int = message["epoch"]
        self.version: int = message["version"]
        self.keeps_live: bool = message["source"] == "live"
        self.filled: bool = message["filled"]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
