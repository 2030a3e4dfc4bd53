"""From a halt back to training, in a survivor or a newcomer: docs/protocol.md, section 4, the worker's column.

    drop the iteration -> drop groups -> verdict -> restore what must be -> ready -> regroup -> rebuild -> scalars ->
    copies again -> go

A later halt interrupts any of it; then it starts over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_core.contract.schedule import CopySchedule
from ff_core.errors import CorruptSlotError, DifferenceError, EngineError, FailoverInterrupt, ProtocolError
from ff_core.state import constants, entries, variable_words, variables
from ff_core.state.device import wait_until_idle
from ff_core.state.words import some_of
from ff_core.worker import scalars
from ff_core.worker.parts import WorkerParts
from ff_core.worker.replicator import Replicator
from ff_core.worker.verdicts import Verdict, Verdicts

if TYPE_CHECKING:
    from ff_core.comm import GroupRegistry
    from ff_core.config.schema import FailoverConfig
    from ff_core.contract.adapter import TrainerAdapter

log = logging.getLogger("ff_core")
_MOST_VARIABLES = 8  # that are named


class Recovery:
    """One worker's recoveries, one after another."""

    def __init__(
        self,
        parts: WorkerParts,
        verdicts: Verdicts,
        config: FailoverConfig,
        registry: GroupRegistry,
        adapter: TrainerAdapter,
        replicator: Replicator,
        schedule: CopySchedule,
    ) -> None:
        self._rank, self._link, self._inbox, self._fence = parts.rank, parts.link, parts.inbox, parts.fence
        self._verdicts, self._config = verdicts, config
        self._registry, self._adapter, self._replicator, self._schedule = registry, adapter, replicator, schedule
        self._variables: tuple[int, dict[str, Any]] | None = None  # version and its variables, of the last recovery
        self.missing: list[str] = []  # names of what has lost entries

    def survive(self) -> int:
        """A survivor, interrupted: returns v*."""
        return self._until_resumed(self._adapter.drop_iteration, None)

    def join(self, first: Verdict) -> int:
        """A newcomer whose script has built everything: returns v*. first: brought the arena that is open now."""
        return self._until_resumed(lambda: None, first)

    def _until_resumed(self, drop: Callable[[], None], first: Verdict | None) -> int:
        newcomer = first is not None
        while True:
            self._wait_quiet()
            drop()
            version = self._attempt(newcomer, first)  # when it returns, its frame and the traceback are gone
            if version is not None:
                return version
            first = None

    def _wait_quiet(self) -> None:
        """Nothing of the old collectives writes any more, whatever is put in place now."""
        wait_until_idle()
        epoch = self._fence.halted()
        if epoch is not None:  # else a newcomer, which has had none
            self._registry.wait_quiet(epoch)

    def _attempt(self, newcomer: bool, first: Verdict | None) -> int | None:
        try:
            return self._once(newcomer, first)
        except FailoverInterrupt:
            return None
        except CorruptSlotError as error:
            self._verdicts.refuse_slot(error, self._config.verdict_timeout_s)
            return None
        except (OSError, EngineError, ProtocolError, TimeoutError):
            # a holder's node died after the verdict, or it went on to a newer epoch: then a halt is on its way
            if not self._fence.wait_halted(self._config.verdict_timeout_s):
                raise
            return None

    def _once(self, newcomer: bool, verdict: Verdict | None) -> int:
        registry, replicator = self._registry, self._replicator
        if not newcomer:
            registry.drop()
        if verdict is None:
            verdict = self._verdicts.next(newcomer=newcomer)
            verdict.close()  # its arena is the one that is open
        epoch, version, message = verdict.epoch, verdict.version, verdict.message
        self._fence.begin_epoch(epoch)
        if message.get("store"):
            registry.client.moved(*message["store"])
        restored = self._restore(verdict)
        self._link.send("ready", rank=self._rank, epoch=epoch, restored_bytes=restored, at=time.time())
        saved = scalars.decode(replicator.blob(version))
        registry.make_late_groups(saved["late_groups"])
        self._inbox.take("regroup", lambda m: bool(m["epoch"] == epoch), self._fence.check)
        clock = [time.perf_counter()]
        registry.regroup(epoch)
        clock.append(time.perf_counter())
        with registry.whole.choosing():
            self._adapter.rebuild(message.get("source_rank"), list(message["newcomers"]), list(message["restored"]))
        replicator.wait_rebuilt()  # before anybody hears that this rank is whole
        clock.append(time.perf_counter())
        scalars.load(self._adapter, saved)
        self._variables = version, saved["variables"]
        if newcomer or self._adapter.repeats_script:
            self.load_variables()
        replicator.connect(message["holders"], epoch)
        self._schedule.begin_epoch(version, message["interval"])
        self._fence.resume(version, replicator.recommit)
        clock.append(time.perf_counter())
        names = ("regroup", "rebuild", "scalars")
        self._link.send(
            "resumed",
            rank=self._rank,
            epoch=epoch,
            timings={name: b - a for name, a, b in zip(names, clock, clock[1:], strict=False)},
        )
        return version

    def counts(self) -> dict[str, int]:
        """Whole numbers among the script's variables, in the version of the last recovery."""
        return {} if self._variables is None else entries.counts_of(self._variables[1])

    def check_variables(self) -> None:
        """Raises DifferenceError if a script that has gone on by itself has changed numbers and texts meanwhile."""
        assert self._variables is not None
        version, saved = self._variables
        changed = variables.of_process.changed_since(saved)
        if changed:
            self._refuse(variable_words.AHEAD, version, changed)

    def load_variables(self) -> None:
        """The script's own, of the last recovery. Raises DifferenceError if some cannot be put back."""
        assert self._variables is not None
        version, saved = self._variables
        lost, long = variables.of_process.load(saved, repeats=self._adapter.repeats_script)
        self.missing = long
        if long:
            log.warning("%s", variable_words.LONG.format(rank=self._rank, version=version, what=some_of(long)))
        if lost:
            self._refuse(variable_words.LOST, version, lost)

    def _refuse(self, words: str, version: int, names: list[str]) -> None:
        """Raises DifferenceError, or warns where the user wants that. words: with rank, version and what."""
        what = some_of(names, most=_MOST_VARIABLES)
        remedies = self._adapter.remedies
        text = words.format(rank=self._rank, version=version, what=what, remedies=remedies)
        text += variable_words.remedy(remedies)
        if self._config.unsaved_variables == "refuse":
            raise DifferenceError(text)
        log.warning("%s", text)

    def _restore(self, verdict: Verdict) -> int:
        """The live tensors are those of the verdict's version. Returns the bytes that were read from the slot."""
        replicator, version = self._replicator, verdict.version
        if verdict.keeps_live:
            replicator.keep_blob(version, replicator.blob(version))
            return 0
        self._verdicts.wait_filled(verdict, self._config.join_timeout_s)
        self._fence.tear()
        blob, restored = replicator.restore(verdict.epoch, version)
        if verdict.constants:
            constants.load(verdict.constants, replicator.specs)
        replicator.keep_blob(version, blob)
        return restored
