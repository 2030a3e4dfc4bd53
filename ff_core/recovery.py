"""From a halt back to training, in a survivor or a newcomer: docs/protocol.md, section 4, the worker's column.

drop the iteration -> drop groups -> verdict -> restore what must be -> ready -> regroup -> rebuild -> scalars -> copies again -> go.
A later halt interrupts any of it; then it starts over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ff_core.adapter import Held
from ff_core.errors import CorruptSlotError, FailoverInterrupt
from ff_core.state import codec, registered, rng

if TYPE_CHECKING:
    from ff_core.control.messages import Message
    from ff_core.failover import Failover
    from ff_core.state.razor import Plan


class Recovery:
    """One worker's recoveries, one after another."""

    def __init__(self, owner: Failover) -> None:
        self._owner = owner

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
            owner = self._owner
            owner.link.send("bad_slot", rank=owner.rank, epoch=owner.epoch, reason=str(error))
            owner.fence.wait_halted(owner.config.verdict_timeout_s)
            return None

    def _once(self) -> int:
        owner = self._owner
        assert owner.registry is not None and owner.adapter is not None
        if not owner.is_newcomer:
            owner.registry.drop()
        verdict, fds = self._verdict()
        epoch, version = verdict["epoch"], verdict["version"]
        role = verdict["roles"][owner.rank]
        if owner.replicator is None:
            owner.open_replicator(fds)
        else:
            _close(fds)
        assert owner.replicator is not None
        owner.fence.begin_epoch(epoch)
        restored = self._restore(role, epoch, version)
        owner.link.send("ready", rank=owner.rank, epoch=epoch, restored_bytes=restored, at=time.time())
        blob = codec.decode(owner.replicator.blob(version))
        owner.registry.make_late_groups(blob["late_groups"])
        owner.inbox.take("regroup", lambda m: bool(m["epoch"] == epoch), owner.check)
        clock = [time.perf_counter()]
        owner.registry.regroup(epoch)
        clock.append(time.perf_counter())
        owner.adapter.rebuild(verdict["source_rank"], list(verdict["newcomers"]))
        clock.append(time.perf_counter())
        self._load(blob)
        owner.protection = verdict["protected"]
        owner.replicator.connect(verdict["holders"][owner.rank], epoch)
        owner.fence.resume(version, owner.replicator.recommit)
        clock.append(time.perf_counter())
        if owner.is_newcomer:
            owner.resumed_as_newcomer(version)
        names = ("regroup", "rebuild", "scalars")
        owner.link.send("resumed", rank=owner.rank, epoch=epoch,
                        timings={name: b - a for name, a, b in zip(names, clock, clock[1:], strict=False)})
        return version

    def _verdict(self) -> tuple[Message, list[int]]:
        """The verdict of the newest halt. A newcomer's first one has no halt of its own."""
        owner = self._owner

        def wanted(message: Message) -> bool:
            halted = owner.fence.halted()
            if halted is None:
                return bool(message["epoch"] == owner.fence.epoch) if owner.is_newcomer else False
            return bool(message["epoch"] == halted)

        return owner.inbox.take("verdict", wanted, lambda: None)

    def _restore(self, role: dict[str, Any], epoch: int, version: int) -> int:
        owner = self._owner
        assert owner.replicator is not None
        if role["source"] == "live":
            owner.replicator.keep_blob(version, owner.replicator.blob(version))
            return 0
        if role["filled"]:
            owner.inbox.take("slot_ready", lambda m: bool(m["epoch"] == epoch), owner.check, owner.config.join_timeout_s)
        owner.fence.tear()
        blob, restored = owner.replicator.restore(epoch, version)
        owner.replicator.keep_blob(version, blob)
        return restored

    def _load(self, blob: dict[str, Any]) -> None:
        owner = self._owner
        assert owner.adapter is not None
        owner.adapter.load_scalars(blob["adapter"])
        registered.load(blob["registered"])
        rng.restore(blob["rng"])  # last: loading may draw numbers


def _close(fds: list[int]) -> None:
    import os

    for fd in fds:
        os.close(fd)
