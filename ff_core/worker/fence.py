"""Which version a worker's live tensors hold, and the lock that makes a halt final.

`enter_step`, `leave_step`, `seal` and the watchdog's `halt` exclude one another. So what `halt` reports cannot change
afterwards, even while the training thread is still computing (docs/protocol.md, section 2).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ff_core.contract.activity import ACTIVITY_RECOVERING, ACTIVITY_STEP, ACTIVITY_USER
from ff_core.contract.stamps import stamp
from ff_core.copy.page import StatusPage
from ff_core.errors import FailoverInterrupt

_PATIENCE_S = 2.0  # of the halt; a fifth of what it may take by default


class Fence:
    """The lock, and what it guards.

    version: finished inner steps of the live tensors, -1 before training.
    sealed: newest version whose scalars were taken.
    """

    def __init__(self, page: StatusPage, epoch: int) -> None:
        self.page = page
        self.epoch = epoch
        self.version = -1
        self.sealed = -1
        self._whole = False
        self._halt_epoch = 0
        self._changed = threading.Condition()

    # ---- training thread --------------------------------------------------------------------------------------------

    def halted(self) -> int | None:
        """Epoch of a halt that has not been resumed from, or None."""
        return self._halt_epoch if self._halt_epoch > self.epoch else None

    @property
    def whole(self) -> bool:
        """The live tensors are those of `version`: not changing, and no halt has found them unfinished."""
        return self._whole

    def check(self) -> None:
        """Raise FailoverInterrupt if halted."""
        epoch = self.halted()
        if epoch is not None:
            raise FailoverInterrupt(epoch)

    def unless_halted(self, action: Callable[[], None]) -> None:
        """`action()`, which must not wait, with no halt before or within it. Raises FailoverInterrupt."""
        with self._changed:
            self.check()
            action()

    def enter_step(self) -> None:
        """Live tensors begin to change."""
        with self._changed:
            self.check()
            self._whole = False
            self.page.store("live", 0)
            self.page.store("activity", ACTIVITY_STEP)

    def leave_step(self, copy: Callable[[int], None]) -> None:
        """Live tensors hold the next version; `copy(version)` must only start the copying, not wait for it."""
        with self._changed:
            self.check()
            self.version += 1
            self._whole = True
            self.page.store("live", stamp(self.epoch, self.version))
            self.page.store("activity", ACTIVITY_USER)
            copy(self.version)

    def seal(self, keep: Callable[[int], None]) -> None:
        """The iteration that made the live version is complete; `keep(version)` stores its scalars without waiting."""
        with self._changed:
            self.check()
            keep(self.version)
            self.sealed = self.version
            self.page.store("sealed", stamp(self.epoch, self.version))

    # ---- recovery ---------------------------------------------------------------------------------------------------

    def wait_halted(self, timeout_s: float) -> bool:
        """Wait for a halt; False if none came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.halted() is not None, timeout_s)

    def begin_epoch(self, epoch: int) -> None:
        """The verdict of `epoch` is being carried out; a halt of a later epoch interrupts from now on."""
        with self._changed:
            self.epoch = epoch
            self.page.store("activity", ACTIVITY_RECOVERING)
            self.check()

    def tear(self) -> None:
        """Live tensors are about to be overwritten by a restore: until `resume` they supply nothing."""
        with self._changed:
            self.check()
            self._whole = False
            self.page.store("live", 0)

    def resume(self, version: int, copy: Callable[[int], None]) -> None:
        """Live tensors and scalars are those of `version`; training goes on from it."""
        with self._changed:
            self.check()
            self.version = self.sealed = version
            self._whole = True
            self.page.store("live", stamp(self.epoch, version))
            self.page.store("sealed", stamp(self.epoch, version))
            self.page.store("activity", ACTIVITY_USER)
            copy(version)

    # ---- watchdog thread --------------------------------------------------------------------------------------------

    def halt(self, epoch: int, free: Callable[[], None], patience_s: float = _PATIENCE_S) -> tuple[int, bool]:
        """(version, sealed): what the live tensors supply from now on; version -1 while they are being changed.

        free(): aborts the groups. Called if the training thread has not left the fence within patience_s. Starting a
        copy waits for one thing only: a device whose queue is full because it is in a collective of the dead. Then the
        step that makes the live version is behind that collective and will not run.
        """
        self._halt_epoch = max(self._halt_epoch, epoch)  # now: what is freed below finds itself halted
        stuck = not self._changed.acquire(timeout=patience_s)
        if stuck:
            free()
            self._changed.acquire()
        try:
            self._changed.notify_all()
            if stuck:
                self.never_whole()
            if not self._whole:
                return -1, False
            return self.version, self.sealed == self.version
        finally:
            self._changed.release()

    def never_whole(self) -> None:
        """After a halt: the step that makes the live version has not run on the device, and perhaps never will.

        Further halts say the same, until `resume`.
        """
        with self._changed:
            self._whole = False
            self.page.store("live", 0)

    @contextmanager
    def activity(self, kind: int) -> Iterator[None]:
        """Show on the status page what the training thread is doing."""
        before = self.page.load("activity")
        self.page.store("activity", kind)
        try:
            yield
        finally:
            self.page.store("activity", before)
