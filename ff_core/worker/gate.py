"""The commit gate: where the training thread waits before live tensors may change, and the only place where it waits
(I6)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ff_core.contract.activity import ACTIVITY_GATE
from ff_core.contract.stamps import stamp
from ff_core.copy.page import WaitResult
from ff_core.errors import FailoverError, FailoverInterrupt

if TYPE_CHECKING:
    from ff_core.worker.session import Failover

_SLICE_S = 0.5
_WARN_S = 30.0
_COPIED_S = 600.0


class CommitGate:
    """Waits for the engine (its copy has left the live tensors) and for the job (every rank has committed).

    Measured by its caller. Looks after connections to holders that broke although nobody died.
    """

    def __init__(self, owner: Failover) -> None:
        self._owner = owner

    def pass_(self, version: int, scheduled: bool) -> None:
        """Before the step that makes `version`. Strict: the newest copied version must be committed everywhere;
        relaxed: only if
        `version` will be copied itself, for then it needs that one's older slot. Raises FailoverInterrupt.
        """
        owner = self._owner
        assert owner.replicator is not None
        with owner.fence.activity(ACTIVITY_GATE):
            self.wait_copied()
            if owner.config.commit == "strict" or scheduled:
                self.wait_committed(owner.replicator.newest)

    def wait_copied(self) -> None:
        """Until the live tensors' newest copy has left them; on a CUDA device the current stream waits, not this
        thread."""
        owner = self._owner
        assert owner.replicator is not None
        try:
            owner.replicator.wait_copied(_COPIED_S)
        except (FailoverError, TimeoutError):
            owner.fence.check()  # a halt cancelled it
            raise

    def wait_committed(self, version: int) -> None:
        """Until W >= version. Mends connections that broke; says so when it takes long. Raises FailoverInterrupt."""
        owner = self._owner
        assert owner.replicator is not None
        target, waited, warned = stamp(owner.epoch, version), 0.0, False
        while True:
            try:
                if owner.page.wait_w(target, owner.epoch, _SLICE_S) is WaitResult.HALTED:
                    raise FailoverInterrupt(owner.page.load("halt_epoch"))
                return
            except TimeoutError:
                waited += _SLICE_S
            owner.check()
            try:
                mended = owner.replicator.mend(owner.fence.unless_halted)
            except FailoverError:
                owner.fence.check()  # a halt cancelled it
                raise
            if mended:
                self._say(mended)
            if waited >= _WARN_S and not warned:
                warned = True
                self._say(
                    f"has waited {waited:.0f} s for version {version} to be committed by every rank "
                    f"(W = {owner.committed_version})"
                )

    def _say(self, text: str) -> None:
        print(f"fftrain: rank {self._owner.rank}: {text}", file=sys.stderr, flush=True)
