"""The commit gate: where the training thread waits before live tensors may change, and the only place where it waits.

Why it must: docs/protocol.md, section 3.
"""

from __future__ import annotations

import sys

from ff_core.contract.activity import ACTIVITY_GATE
from ff_core.contract.stamps import stamp
from ff_core.copy.page import WaitResult
from ff_core.errors import FailoverError, FailoverInterrupt
from ff_core.worker.cost import CopyCosts
from ff_core.worker.parts import WorkerParts
from ff_core.worker.replicator import Replicator

_SLICE_S = 0.5
_WARN_S = 30.0
_COPIED_S = 600.0


class CommitGate:
    """Waits for the engine (its copy has left the live tensors) and for the job (every rank has committed).

    Looks after connections to holders that broke although nobody died.
    costs: are told what a pass takes.
    strict: every step waits until the newest copied version is committed. Else two kinds of steps wait: those whose
    version will be copied, and those behind a version that was made durable again, whose slot may turn out damaged.
    """

    def __init__(self, parts: WorkerParts, replicator: Replicator, costs: CopyCosts, *, strict: bool) -> None:
        self._rank, self._page, self._fence = parts.rank, parts.page, parts.fence
        self._replicator, self._costs, self._strict = replicator, costs, strict

    def pass_(self, scheduled: bool) -> int:
        """Before a step. scheduled: the version that it makes will be copied, over the older slot of the two.

        Returns the interval from that version to the next copied one if it is scheduled, else 0. The interval has come
        to the status page with W. No later W can follow before this rank has made its step. Raises FailoverInterrupt.
        """
        newest = self._replicator.newest
        committed = self._replicator.committed_version() >= newest
        with self._fence.activity(ACTIVITY_GATE), self._costs.gate(scheduled, committed) as gate:
            self.wait_copied()
            gate.copied()
            if self._strict or scheduled or self._replicator.recommitted:
                self.wait_committed(newest)
        return self._page.load("interval") if scheduled else 0

    def wait_copied(self) -> None:
        """Until the newest copy has left the live tensors.

        On a CUDA device the current stream waits, not this thread.
        """
        try:
            self._replicator.wait_copied(_COPIED_S)
        except (FailoverError, TimeoutError):
            self._fence.check()  # a halt cancelled it
            raise

    def wait_committed(self, version: int) -> None:
        """Until W >= version. Mends connections that broke; says so when it takes long. Raises FailoverInterrupt."""
        epoch, waited, warned = self._fence.epoch, 0.0, False
        target = stamp(epoch, version)
        while True:
            try:
                if self._page.wait_w(target, epoch, _SLICE_S) is WaitResult.HALTED:
                    raise FailoverInterrupt(self._page.load("halt_epoch"))
                return
            except TimeoutError:
                waited += _SLICE_S
            self._fence.check()
            try:
                mended = self._replicator.mend(self._fence.version, self._fence.unless_halted)
            except FailoverError:
                self._fence.check()  # a halt cancelled it
                raise
            if mended:
                self._say(mended)
            if waited >= _WARN_S and not warned:
                warned = True
                self._say(
                    f"has waited {waited:.0f} s for version {version} to be committed by every rank "
                    f"(W = {self._replicator.committed_version()})"
                )

    def _say(self, text: str) -> None:
        print(f"fftrain: rank {self._rank}: {text}", file=sys.stderr, flush=True)
