"""The unmodified loop: a script in the usual style, of which nothing is known but the calls it makes.

    engine.load_checkpoint(...)                      # a replacement is answered from memory
    for batch in loader:
        loss = engine(batch); engine.backward(loss); engine.step()

A survivor is interrupted inside one of its calls, and goes on there: what the script has done since version v* is done
again (ff_deepspeed.recording), then the call is made once more, and the script notices nothing. Where that is
impossible (the script computed the loss itself) the iteration is void: its remaining calls do nothing, and the loader
hands the same batches out again.

An iteration is sealed when the script asks the training loader for the next batch, or else calls engine(...) again.
That is also where a replacement joins: after it both make the same calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ff_core.errors import FailoverError, FailoverInterrupt
from ff_deepspeed import ambient
from ff_deepspeed.feed import NOWHERE, Feed, Tracked
from ff_deepspeed.recording import Backward, Call, Event, Forward, Record, Sealed, modes_of, set_modes

if TYPE_CHECKING:
    from ff_deepspeed.protection import Protection

log = logging.getLogger("ff_deepspeed")
T = TypeVar("T")

AT_LOADER, AT_FORWARD = "loader", "forward"
REMEDIES = (
    "Either resume in the usual way: call engine.load_checkpoint(...) before training on every start, and register "
    "`ff_deepspeed.client_state(lambda: {...})` with what your script needs to go on; or change two lines: "
    "`for batches in ff_deepspeed.batches(engine, loader)` with `with ff_deepspeed.iteration()` inside"
)


class Unmodified:
    """The calls of one protected engine's script, from the first training forward on."""

    def __init__(self, protection: Protection) -> None:
        self._p = protection
        self._failover = protection.failover
        self._feed = Feed()
        self._records: dict[int, Record] = {}
        self._open: Record | None = None  # the running iteration; None before training
        self._void = False
        self._busy = False  # inside a call of the script: calls made by that call are not the script's
        self._answered = False  # a newcomer's load_checkpoint()
        self._ended = False

    # ---- Script (see ff_deepspeed.adapter)
    # ---------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        sealed = self._sealed()
        return {**NOWHERE, "joined_at": AT_FORWARD} if sealed is None else sealed.data

    def client_state(self) -> dict[str, Any]:
        sealed = self._sealed()
        return self._p.client.save() if sealed is None else sealed.client

    def restored(self, saved: dict[str, Any]) -> None:
        self._p.client.load(saved["client"])

    def _sealed(self) -> Sealed | None:
        record = self._records.get(self._failover.version)
        return None if record is None else record.sealed

    # ---- calls of the script
    # -----------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether a call made now is the script's, in training."""
        return self._open is not None and not self._busy

    def forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """engine(...) in training."""
        engine = self._p.engine
        if self._busy:
            return original(engine, *args, **kwargs)
        if self._open is None:
            self._start()
        if self._void:
            return original(engine, *args, **kwargs)
        self._seal_if_stepped(AT_FORWARD)
        self._feed.used()
        event = Forward(original, args, kwargs, modes_of(engine.module), ambient.take(engine))

        def perform() -> Any:
            self._failover.inject("forward")
            return original(engine, *args, **kwargs)

        output = self._guarded(perform, event, lambda: original(engine, *args, **kwargs))
        event.made(output)
        return output

    def backward(self, original: Callable[..., Any], loss: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        """engine.backward(loss)."""
        engine = self._p.engine
        if not self.listening:
            return original(engine, loss, **kwargs)
        if self._void:
            return loss.detach()
        assert self._open is not None
        event = Backward(original, *self._open.forward_of(loss), kwargs, ambient.take(engine))

        def perform() -> Any:
            replayed = event.loss()
            return original(engine, loss if replayed is None else replayed, **kwargs)

        return self._guarded(perform, event, loss.detach)

    def step(self, original: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """engine.step()."""
        engine = self._p.engine
        if not self.listening:
            original(engine, *args, **kwargs)
        elif not self._void:
            event = Call(original, (engine, *args), kwargs, ambient.take(engine))
            self._guarded(lambda: original(engine, *args, **kwargs), event, lambda: None)

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any, writes: bool, alone: Callable[[], Any]) -> Any:
        """A collective of the script (writes: into tensors that it is given), or a checkpoint.

        alone: what happens instead in a void iteration, in which this rank is by itself.
        """
        if not self.listening:
            return function(*args, **kwargs)
        if self._void:
            return alone()
        event = Call(function, args, kwargs, ambient.take(self._p.engine), writes)
        tried = False

        def perform() -> Any:
            nonlocal tried
            if tried:
                event.renew()
            tried = True
            return function(*args, **kwargs)

        result = self._guarded(perform, event, alone)
        event.made()
        return result

    def next(self, tracked: Tracked) -> Any:
        """next(iterator) of a data loader. Raises StopIteration."""
        if self._busy:
            return tracked.source.next()
        if self._open is None and self._answered:
            self._arrive(tracked)
        elif self._open is not None and self._feed.is_training(tracked):
            self._void = False
            self._seal_if_stepped(AT_LOADER)
            self._void = False  # sealing was interrupted: the batches are handed out here again
        return self._feed.next(tracked)

    def check_unused(self) -> None:
        """Raises FailoverError if training has begun in an unmodified loop: batches() comes too late."""
        if self._open is not None:
            raise FailoverError(
                "ff_deepspeed.batches() was called after the script had trained outside of it; let all training "
                "go through batches(), or none"
            )

    def answered(self) -> None:
        """A newcomer's load_checkpoint() was answered: its script knows where to go on."""
        self._answered = True

    def end(self) -> None:
        """The script is over, or destroys its groups: wait until nobody needs this rank any more."""
        if self._failover.is_newcomer and self._answered:
            self._join()  # at the very end of training: the others are waiting here too
        if self._ended or not self.listening:
            return
        if self._void:
            raise self._p.fail(
                FailoverError(
                    "the script ended in an iteration that a failure had voided: its loop counts iterations by itself "
                    f"and is one ahead. {REMEDIES}"
                )
            )
        self._seal_if_stepped(AT_LOADER)
        self._guarded(self._failover.finish, None, lambda: None)
        self._ended = True

    # ---- starting and joining
    # ----------------------------------------------------------------------------------------

    def _start(self) -> None:
        """The first training forward: protection begins, or a newcomer joins that has not joined at its loader."""
        if self._failover.is_newcomer:
            step = self._failover.saved_scalars()["trainer"]["engine"]["global_steps"]
            if step > 0 and not self._answered:
                raise self._p.fail(
                    FailoverError(
                        f"this process replaces a dead rank at step {step}, but its script starts from the beginning. "
                        f"{REMEDIES}"
                    )
                )
        self._join()
        self._feed.begin_training(self._failover.version)

    def _arrive(self, tracked: Tracked) -> None:
        """A newcomer asks a loader for a batch: go to its position, and join if the others sealed at this place."""
        data = self._failover.saved_scalars()["data"]
        if self._feed.go_to(tracked, data) and data["joined_at"] == AT_LOADER:
            self._join()
            self._feed.begin_training(self._failover.version)

    def _join(self) -> None:
        self._p.adapter.script = self
        self._open_record(self._p.start())

    def _open_record(self, version: int) -> None:
        self._open = self._records[version + 1] = Record(version + 1)

    # ---- sealing
    # -----------------------------------------------------------------------------------------------------

    def _seal_if_stepped(self, joined_at: str) -> None:
        assert self._open is not None
        if self._failover.version == self._open.version:
            self._guarded(lambda: self._seal(joined_at), None, lambda: None)

    def _seal(self, joined_at: str) -> None:
        record = self._open
        assert record is not None
        if record.sealed is None:
            data = {**self._feed.position(), "joined_at": joined_at}
            record.sealed = Sealed(ambient.take(self._p.engine), self._p.client.save(), data)
        self._p.persist()
        self._failover.seal()
        record.release()
        self._feed.seal(record.version)
        oldest = self._failover.oldest_needed
        self._feed.forget(oldest)
        for old in [version for version in self._records if version <= oldest]:
            del self._records[old]
        self._open_record(record.version)

    # ---- failures
    # ----------------------------------------------------------------------------------------------------

    def _guarded(self, perform: Callable[[], T], event: Event | None, voided: Callable[[], T]) -> T:
        """Make a call of the script, again and again after failures.

        event: what is recorded of it. voided: what the call gives instead if the iteration becomes void.
        """
        around = ambient.take(self._p.engine) if event is None else event.ambient
        while True:
            epoch: int | None = None
            result: Any = None
            try:
                with self._inside():
                    result = perform()
            except FailoverInterrupt as caught:
                epoch = caught.epoch
            if epoch is None:
                if event is not None and self._open is not None:
                    self._open.events.append(event)
                return result
            # Here no exception is alive any more: its traceback would keep the halted groups alive.
            if not self._recover(epoch, None if event is None else event.obstacle()):
                with self._inside():
                    return voided()
            around.put(self._p.engine)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _recover(self, epoch: int, obstacle: str | None) -> bool:
        """Back to a common version and forward again to where the script is. False: the iteration is void."""
        pending: int | None = epoch
        while pending is not None:
            with self._inside():
                version = self._failover.recover(FailoverInterrupt(pending))
            pending = None
            obstacle = obstacle or self._obstacle(version)
            if obstacle is not None:
                self._make_void(version, obstacle)
                return False
            try:
                with self._inside():
                    self._replay(version)
            except FailoverInterrupt as caught:
                pending = caught.epoch
        return True

    def _obstacle(self, version: int) -> str | None:
        """Why what the script did after `version` cannot be done again, None if it can."""
        if version + 1 not in self._records:
            return f"what followed version {version} is not recorded any more"
        newer = [record for number, record in self._records.items() if number > version]
        return next((reason for reason in (record.obstacle() for record in newer) if reason), None)

    def _replay(self, version: int) -> None:
        """Do again what the script did after `version`, whatever mode the script is in now."""
        with torch.inference_mode(False), torch.enable_grad(), _modes_kept(self._p.engine.module):
            self._replay_records(version)

    def _replay_records(self, version: int) -> None:
        engine = self._p.engine
        for number in sorted(number for number in self._records if number > version):
            record = self._records[number]
            for event in record.events:
                event.ambient.put(engine)
                event.replay(engine)
            if record.sealed is not None and record is not self._open:
                record.sealed.ambient.put(engine)
                self._p.persist()
                self._failover.seal()
                record.release()

    def _make_void(self, version: int, reason: str) -> None:
        if not self._feed.can_return_to(version):
            raise self._p.fail(
                FailoverError(
                    f"the iteration after version {version} must be repeated, but {reason}, and its batches came "
                    f"from no torch DataLoader. {REMEDIES}"
                )
            )
        log.warning(
            "iteration %d is repeated: %s. The loop's own counter is one ahead from now on; engine.global_steps "
            "is right",
            version + 1,
            reason,
        )
        self._feed.return_to(version)
        for newer in [number for number in self._records if number > version]:
            del self._records[newer]
        self._open_record(version)
        self._void = True


@contextmanager
def _modes_kept(module: torch.nn.Module) -> Iterator[None]:
    """Replays set each module to training or evaluation as it was; afterwards they are as the script left them."""
    modes = modes_of(module)
    try:
        yield
    finally:
        set_modes(module, modes)
