"""Makes the calls of an unmodified script, and makes them again after a failure.

`Redo` holds the records of the iterations since the job's last safe version (ff_deepspeed.recording) and the open one.
A call that is interrupted goes back to version v*, does again what the script did after it, and is made once more.
Where that is impossible the open iteration becomes void: `void` is true until the loader hands its batches out again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from ff_core.errors import FailoverError, FailoverInterrupt, interrupted
from ff_core.state import switched
from ff_deepspeed import ambient, switches, words
from ff_deepspeed.recording import Backward, Event, Forward, Record, Sealed
from ff_deepspeed.words import REMEDIES

if TYPE_CHECKING:
    from ff_deepspeed.engine import ProtectedEngine
    from ff_deepspeed.feed import Feed

log = logging.getLogger("ff_deepspeed")
T = TypeVar("T")
_AUTOGRAD = [key for name, key in vars(torch._C.DispatchKey).items() if name.startswith(("Autograd", "ADInplace"))]


class Redo:
    """The records of one engine's script. open: the running iteration, None before training begins."""

    def __init__(self, protection: ProtectedEngine, feed: Feed) -> None:
        self._p = protection
        self._session = protection.session
        self._feed = feed
        self._records: dict[int, Record] = {}
        self.open: Record | None = None
        self.void = False
        self.reason = ""  # why it is
        self.voided: Forward | None = None  # the first engine(...) of the iteration that is void
        self.first = -1  # the version with which this process began: it was not sealed where batches are asked for
        self.busy = False  # inside a call of the script: calls made by that call are not the script's

    def begin(self, version: int) -> None:
        """The iteration after `version` begins."""
        self.open = self._records[version + 1] = Record(version + 1)

    def sealed(self, version: int) -> Sealed | None:
        """How `version` was sealed, if that is recorded."""
        record = self._records.get(version)
        return None if record is None else record.sealed

    def forget(self, oldest_needed: int) -> None:
        """The job never goes back behind version `oldest_needed`."""
        for old in [version for version in self._records if version <= oldest_needed]:
            del self._records[old]

    def make(self, perform: Callable[[], T], event: Event | None, voided: Callable[[], T]) -> T:
        """Make a call of the script, again and again after failures.

        event: what is recorded of it. voided: what the call gives instead if the iteration becomes void.
        """
        around = ambient.take(self._p.engine) if event is None else event.ambient
        while True:
            with self._inside():
                result, epoch = interrupted(perform)
            if epoch is None:
                if event is not None and self.open is not None:
                    self.open.events.append(event)
                return cast(T, result)
            if not self._recover(epoch, event):
                return voided()  # not inside: a collective in it is refused, as nobody else makes it
            around.put(self._p.engine)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def _recover(self, epoch: int, event: Event | None) -> bool:
        """Back to a common version and forward again to where the script is, before `event`. False: the iteration is
        void."""
        adapter = self._p.adapter
        # The script goes on where it is. What it has set since stays as it left it, though the version had it
        # otherwise, and so had the calls that are made again.
        mine = switches.take(adapter) if event is None or event.switches is None else event.switches
        # An evaluation may have changed buffers: it is not made again. Forward and backward (where activations are
        # computed again) were interrupted in the middle, and leave them half changed.
        buffers = {} if event is not None and event.half else adapter.buffers.copy()
        with switched.kept():
            done = self._go_back(epoch, event)
        if not done or isinstance(event, Backward):
            mine.attributes = switches.take(adapter).attributes
        mine.put()
        if done:
            adapter.buffers.put(buffers)
        return done

    def _go_back(self, epoch: int, event: Event | None) -> bool:
        obstacle = None if event is None else event.obstacle()
        pending: int | None = epoch
        while pending is not None:
            with self._inside():
                version = self._session.recover(FailoverInterrupt(pending))
            obstacle = obstacle or self._obstacle(version)
            if obstacle is not None:
                self._make_void(version, obstacle, event)
                return False
            with self._inside():
                _, pending = interrupted(partial(self._replay, version))
        return True

    def _obstacle(self, version: int) -> str | None:
        """Why what the script did after `version` cannot be done again, None if it can."""
        if version + 1 not in self._records:
            return f"what followed version {version} is not recorded any more"
        newer = [record for number, record in self._records.items() if number > version]
        return next((reason for reason in (record.obstacle() for record in newer) if reason), None)

    def _replay(self, version: int) -> None:
        """Do again what the script did after `version`, whatever mode the script is in now."""
        with _autograd(), torch.inference_mode(False), torch.enable_grad():
            self._replay_records(version)

    def _replay_records(self, version: int) -> None:
        engine = self._p.engine
        for number in sorted(number for number in self._records if number > version):
            record = self._records[number]
            for event in record.events:
                event.ambient.put(engine)
                event.replay(engine)
            if record.sealed is not None and record is not self.open:
                record.sealed.ambient.put(engine)
                record.sealed.switches.put()
                self._p.adapter.buffers.put(record.sealed.buffers)
                self._p.persist()
                self._session.seal()
                record.release()

    def may_lift(self, inputs: Any) -> bool:
        """In a void iteration of a loop that fetches ahead: whether the batch that must be repeated is here."""
        if not self._feed.runs_ahead or not self._feed.is_next(inputs):
            return False
        first = self.voided
        if first is None or not first.is_of(inputs):
            raise self._p.fail(FailoverError(words.OTHER_VALUES))
        self._session.script_went_on()
        first.ambient.put(self._p.engine)
        self.void = False
        return True

    def _make_void(self, version: int, reason: str, event: Event | None) -> None:
        if not self._feed.can_return_to(version):
            raise self._p.fail(
                FailoverError(
                    f"the iteration after version {version} must be repeated, but {reason}, and its batches came "
                    f"from no torch DataLoader. {REMEDIES}"
                )
            )
        if version == self.first:
            raise self._p.fail(FailoverError(words.first(reason)))
        log.warning("iteration %d is repeated by the script: %s", version + 1, reason)
        record = self._records.get(version + 1)
        done = [*([] if record is None else record.events), *([] if event is None else [event])]
        self.voided = next((one for one in done if isinstance(one, Forward)), None)
        self._feed.return_to(version)
        self._p.session.given_again()
        for newer in [number for number in self._records if number > version]:
            del self._records[newer]
        self.begin(version)
        self.void, self.reason = True, reason


@contextmanager
def _autograd() -> Iterator[None]:
    """A functional collective is interrupted inside of torch's dispatcher, where autograd does not work."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    keys = [key for key in _AUTOGRAD if excluded.has(key)]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        yield
    finally:
        for key in keys:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, True)
