"""One rank's protected training: its copies, its commit gate, its recoveries. Made when its arena is open."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ff_core.comm import nccl
from ff_core.contract.activity import ACTIVITY_GATE, ACTIVITY_LEAVING
from ff_core.contract.schedule import CopySchedule
from ff_core.copy import transports
from ff_core.copy.transports import StreamChoice
from ff_core.errors import FailoverError, FailoverInterrupt
from ff_core.state import found, hyperparameters, inputs, variables
from ff_core.state.device import device_of
from ff_core.state.edits import Edits
from ff_core.state.inputs import Inputs
from ff_core.state.razor import Plan, describe
from ff_core.worker import scalars, warm_device
from ff_core.worker.cost import CopyCosts
from ff_core.worker.cost_reports import CostReports
from ff_core.worker.gate import CommitGate
from ff_core.worker.parts import WorkerParts
from ff_core.worker.preload import changed_environment, library_modules, search_paths, settings_of_job
from ff_core.worker.rank_stats import rank_stats
from ff_core.worker.recovery import Recovery
from ff_core.worker.replicator import Replicator
from ff_core.worker.sameness import Sameness
from ff_core.worker.verdicts import Verdict, Verdicts

if TYPE_CHECKING:
    import torch

    from ff_core.comm import GroupRegistry
    from ff_core.config.schema import FailoverConfig
    from ff_core.contract.adapter import TrainerAdapter
    from ff_core.contract.messages import Message
    from ff_core.state.codec import Encoding
    from ff_core.worker.engine import CopyEngine

log = logging.getLogger("ff_core")
_LOOK_S = 0.25
_TOLD_IN = 2  # the version in which the script is told what it writes


class Training:
    """From begin() (the job's first start) or join() (a newcomer) until finish(). The session's methods do the rest.

    plan: where each tensor lies in a slot.  engine: of the rank's slots; becomes the training's.
    preload_calls: what spares call ahead, told to them when the first version is sealed.
    """

    def __init__(
        self,
        parts: WorkerParts,
        verdicts: Verdicts,
        config: FailoverConfig,
        registry: GroupRegistry,
        adapter: TrainerAdapter,
        plan: Plan,
        engine: CopyEngine,
        preload_calls: Sequence[list[Any]],
    ) -> None:
        arena = engine.arena
        if (arena.layout.sent_bytes, arena.layout.local_bytes) != (plan.sent_bytes, plan.local_bytes):
            raise FailoverError(
                f"this replacement of rank {parts.rank} has {plan.sent_bytes} + {plan.local_bytes} bytes of "
                f"state, the rank it replaces had {arena.layout.sent_bytes} + {arena.layout.local_bytes}: "
                "the script built something else than before"
            )
        self.joined = False  # of a newcomer: join() is done
        self._parts, self._fence, self._link = parts, parts.fence, parts.link
        self._config, self._registry, self._adapter = config, registry, adapter
        self._plan, self._arena, self._preload_calls = plan, arena, preload_calls
        streams = StreamChoice(config.tcp_streams, parts.ranks_per_node, parts.world_size, config.replicas)
        self.replicator = Replicator(parts.rank, plan, engine, parts.page, parts.secret, config, streams)
        self._schedule = CopySchedule()
        reports = CostReports(parts)
        self._costs = CopyCosts(self.replicator.clock, on_device=self.replicator.on_device, report=reports.measured)
        self._gate = CommitGate(parts, self.replicator, self._costs, strict=config.commit == "strict")
        self._recovery = Recovery(parts, verdicts, config, registry, adapter, self.replicator, self._schedule)
        notes = arena.notes()
        self.inputs = Inputs(parts.rank, notes[: inputs.BYTES], adapter.remedies)
        of_hyperparameters = notes[inputs.BYTES : inputs.BYTES + hyperparameters.BYTES]
        self._sameness = Sameness(parts, adapter, of_hyperparameters, config, registry.whole.get)
        self._edits = Edits(adapter.only_stepped)
        self._arriving: Encoding | None = None  # scalars of the live version, which is not sealed without them
        self._tells_in = 1  # version in which spares are told what to import
        self._pauses_at: int | None = None  # version whose seal waits for a halt
        self._redo_until: int | None = None  # version at which the iteration that a death interrupted is done again

    # ---- start ------------------------------------------------------------------------------------------------------

    def begin(self, answer: Message, journal: bytes, blob: bytes) -> None:
        """Copy version 0. answer: the agent's message "arena".  journal, blob: init journal, scalars of version 0."""
        parts, replicator = self._parts, self.replicator
        self._arena.set_journal(journal)
        replicator.connect(answer["holders"], self._fence.epoch)
        if parts.rank == 0:
            print(describe(self._plan, answer["coverage"]), file=sys.stderr, flush=True)
            if answer["holders"]:
                advice = transports.advice(self._config.transport)
                text = f"replicas travel by {replicator.transport}" + (f"; {advice}" if advice else "")
                print(f"fftrain: {text}", file=sys.stderr, flush=True)
        replicator.keep_blob(0, blob)
        self._schedule.begin_epoch(0, answer["interval"])
        self._fence.resume(0, replicator.recommit)
        self._link.send("training", rank=parts.rank)
        # Else a death in the first iteration may find no version. The first step would wait for this one in any case.
        self._wait_protected()

    def _wait_protected(self) -> None:
        """Until every rank has committed the live version, or is halted: that is met in the iteration."""
        with suppress(FailoverInterrupt), self._fence.activity(ACTIVITY_GATE):
            self._gate.wait_committed(self._fence.version)

    def join(self, first: Verdict) -> None:
        """Take the dead rank's place. first: the verdict that brought the arena."""
        self.inputs.take_over()
        version = self._recovery.join(first)
        self.inputs.recovered(self._fence.epoch)
        self._sameness.joined(version, self._recovery.counts())
        self._redo_until = version + 1
        # Perhaps the job goes on from its disk: no rank has told spares yet what to import.
        self._tells_in = version + 1 if len(first.message["restored"]) == self._parts.world_size else 1
        self.joined = True

    # ---- an iteration -----------------------------------------------------------------------------------------------

    def given(self, values: Any) -> None:
        """See AdapterSession."""
        self.settle()
        if self._is_complete:
            self.inputs.given(self._fence.version + 1, values)
        self.replicator.forward_begins()

    def loss(self, value: torch.Tensor) -> None:
        """See AdapterSession."""
        if self._fence.sealed == self._fence.version:
            self.inputs.loss(self._fence.version + 1, value)

    @contextmanager
    def step(self) -> Iterator[None]:
        """See AdapterSession."""
        fence = self._fence
        self.settle(wait=True)
        if fence.sealed < fence.version:
            raise FailoverError(
                f"a second optimizer step before iteration {fence.version} was complete: an iteration is one step; "
                "ask the loop for the next batches (or call seal()) between steps"
            )
        self.inputs.check(fence.version + 1, self._recovery.missing)
        self._refuse_edits()
        self._sameness.before_step(fence.version + 1)
        self.replicator.at_gate()
        due = fence.version + 1 == self._schedule.next
        interval = self._gate.pass_(due)
        if due:
            self._schedule.after_next(interval)
            self._pauses_at = fence.version + 1 if self._parts.page.load("pause") else None
        fence.enter_step()
        self._edits.stepping()
        with found.framework_steps():
            yield
        fence.leave_step(self._stepped)
        self._parts.faults.point("copying", fence.version)

    def mark(self) -> None:
        """See AdapterSession."""
        with self.step():
            pass
        self.seal()
        self.settle(wait=True)
        self._link.send("marked", rank=self._parts.rank, epoch=self._fence.epoch, version=self._fence.version)
        self._wait_protected()

    def _stepped(self, version: int) -> None:
        if not self._config.weights_edited:
            self._copy(version)

    def _copy(self, version: int) -> None:
        if version == self._schedule.next:
            with self._costs.beginning():
                self.replicator.begin(version, held=True)
            self._schedule.copied(version)
        self._edits.stepped(version)

    def _refuse_edits(self) -> None:
        self._edits.refuse(edited=self._config.weights_edited, remedy=self._adapter.remedies.edits)

    def seal(self) -> None:
        """See AdapterSession."""
        fence, page = self._fence, self._parts.page
        fence.check()
        if self._is_complete:
            return
        self._arriving = scalars.take(self._adapter, self._registry)
        if fence.version == _TOLD_IN and self._parts.rank == 0:
            for text in variables.of_process.told(self._adapter.remedies):
                log.warning("%s", text)
        if self._config.weights_edited:
            fence.unless_halted(lambda: self._copy(fence.version))
        self.settle()
        page.store("progress", page.load("progress") + 1)
        if self._redo_until is not None and fence.version >= self._redo_until:
            self._redo_until = None
            self._link.send("redone", rank=self._parts.rank, epoch=fence.epoch, version=fence.version, at=time.time())
            self._registry.give_back()
        if fence.version == self._tells_in and self._parts.rank == 0:
            changed = changed_environment()
            calls = [*self._preload_calls, *self._device_calls(changed)]
            modules, settings = library_modules(), settings_of_job()
            self._link.send(
                "preload", modules=modules, calls=calls, environ=changed, settings=settings, paths=search_paths()
            )
        if fence.version == self._pauses_at:
            self._pause()

    def _pause(self) -> None:
        """Ranks are about to move to another node: wait for the halt here, where no iteration is lost by it. Then it
        is met as any other is."""
        self._pauses_at = None
        with suppress(FailoverInterrupt), self._fence.activity(ACTIVITY_GATE):
            self.settle(wait=True)
            self._gate.wait_committed(self._fence.version)
            while not self._fence.wait_halted(_LOOK_S):
                pass  # Python handles signals

    def _device_calls(self, changed: Mapping[str, str]) -> list[list[object]]:
        device = device_of(self._plan)
        if device is None:
            return []
        has_nccl = any(nccl.is_in(group.spec) for group in self._registry.groups())
        return warm_device.calls(device, self._config.spare_device_memory_bytes, changed, nccl=has_nccl)

    @property
    def _is_complete(self) -> bool:
        """The iteration that made the live version is over. Its scalars may still be on their way from a device."""
        return self._arriving is not None or self._fence.sealed == self._fence.version

    def settle(self, wait: bool = False) -> None:
        """Seal the live version if seal() was called and its scalars have arrived. wait: for them.

        Until then a halt finds it unsealed. After a halt a tensor may arrive that a collective was to bring, and did
        not. Raises FailoverInterrupt.
        """
        arriving = self._arriving
        if arriving is not None and (wait or arriving.arrived()):
            blob = arriving.bytes()
            self._arriving = None
            self._fence.seal(lambda version: self.replicator.seal(version, blob))

    def _copy_last(self, version: int) -> None:
        self.replicator.recommit(version)
        self._schedule.copied(version)

    @property
    def oldest_needed(self) -> int:
        """See AdapterSession."""
        return self._schedule.before(self.replicator.committed_version())

    def can_supply(self, version: int) -> bool:
        """Whether the job could go on from live tensors of `version`: only if that is copied, or it would need a third
        slot. After a halt, in the watchdog's thread."""
        return self._schedule.is_copied(version)

    # ---- failure and end --------------------------------------------------------------------------------------------

    def recover(self) -> int:
        """See AdapterSession."""
        interrupted = self._fence.version + self._is_complete
        if self._is_complete or not self._config.weights_edited:
            self._refuse_edits()  # or what is live now would pass for the version
        self._arriving = self._pauses_at = None
        self._edits.forget()
        self._sameness.forget()
        version = self._recovery.survive()
        self.inputs.recovered(self._fence.epoch)
        self._sameness.recovered(version, self._recovery.counts())
        self._redo_until = max(version + 1, interrupted)
        self._costs.dropped()
        return version

    def script_went_on(self) -> None:
        """See AdapterSession."""
        self._recovery.check_variables()

    def script_again(self) -> None:
        """See AdapterSession."""
        self.inputs.again(self._fence.version)
        self._recovery.load_variables()

    def finish(self, *, again: bool) -> None:
        """See AdapterSession."""
        self.seal()
        self.settle(wait=True)
        self._sameness.settle()
        parts, fence, replicator = self._parts, self._fence, self.replicator
        if replicator.newest != fence.version:  # it was not its turn, but the last one is always kept
            self._gate.wait_copied()
            self._gate.wait_committed(replicator.newest)  # or both slots would be needed
            fence.resume(fence.version, self._copy_last)
        self._costs.dropped()
        epoch, version, stats = fence.epoch, fence.version, rank_stats(self._costs, replicator.stats())
        self._link.send("leaving", rank=parts.rank, epoch=epoch, version=version, again=again, stats=stats)
        with fence.activity(ACTIVITY_LEAVING):
            parts.inbox.take("may_leave", lambda m: bool(m["epoch"] == epoch and m["version"] == version), fence.check)
        self._schedule.left(version)
