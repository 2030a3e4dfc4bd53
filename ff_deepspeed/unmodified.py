"""The unmodified loop: a script in the usual style, of which nothing is known but the calls it makes.

    engine.load_checkpoint(...)                      # a replacement is answered from memory
    for batch in loader:
        loss = engine(batch); engine.backward(loss); engine.step()

A survivor is interrupted inside one of its calls, and goes on there: what the script has done since version v* is done
again (ff_deepspeed.recording), then the call is made once more, and the script notices nothing. Where that is
impossible (the script wrote into what it gave engine(...)) the iteration is void: its remaining calls do nothing, a
collective of the script ends the job with words, and the loader hands the same batches out again.

An iteration is sealed when the script asks the training loader for the next batch, or else calls engine(...) again.
That is also where a replacement joins: after it both make the same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_deepspeed import ambient
from ff_deepspeed.feed import NOWHERE, Feed, Tracked
from ff_deepspeed.recording import Backward, Call, Forward, Handle, Launch, Sealed, Settle, modes_of
from ff_deepspeed.redo import REMEDIES, Redo

if TYPE_CHECKING:
    from ff_deepspeed.engine import ProtectedEngine

AT_LOADER, AT_FORWARD = "loader", "forward"


class Unmodified:
    """The calls of one protected engine's script, from the first training forward on."""

    def __init__(self, protection: ProtectedEngine) -> None:
        self._p = protection
        self._failover = protection.session
        self._feed = Feed()
        self._redo = Redo(protection, self._feed)
        self._answered = False  # a newcomer's load_checkpoint()
        self._ended = False

    # ---- Script (see ff_deepspeed.adapter) --------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        sealed = self._redo.sealed(self._failover.version)
        return {**NOWHERE, "joined_at": AT_FORWARD} if sealed is None else sealed.data

    def client_state(self) -> dict[str, Any]:
        sealed = self._redo.sealed(self._failover.version)
        return self._p.client.save() if sealed is None else sealed.client

    def restored(self, saved: dict[str, Any]) -> None:
        self._p.client.load(saved["client"])

    # ---- calls of the script ----------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether a call made now is the script's, in training."""
        return self._redo.open is not None and not self._redo.busy

    def forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """engine(...) in training."""
        engine = self._p.engine
        if self._redo.busy:
            return original(engine, *args, **kwargs)
        if self._redo.open is None:
            self._start()
        if self._redo.void:
            return original(engine, *args, **kwargs)
        self._seal_if_stepped(AT_FORWARD)
        self._feed.used()
        self._p.session.given((args, kwargs))
        event = Forward(original, args, kwargs, modes_of(engine.module), ambient.take(engine))

        def perform() -> Any:
            self._failover.inject("forward")
            return original(engine, *args, **kwargs)

        output = self._redo.make(perform, event, lambda: original(engine, *args, **kwargs))
        event.made(output)
        return output

    def backward(self, original: Callable[..., Any], loss: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        """engine.backward(loss)."""
        engine = self._p.engine
        if not self.listening:
            return original(engine, loss, **kwargs)
        if self._redo.void:
            return loss.detach()
        assert self._redo.open is not None
        event = Backward(original, loss, self._redo.open, kwargs, ambient.take(engine))
        if event.obstacle() is not None:
            raise self._p.fail(
                UnsupportedError(
                    f"after a failure this iteration could not be repeated: {event.obstacle()}. {REMEDIES}"
                )
            )

        def perform() -> Any:
            with event.watching():
                return original(engine, loss if event.fresh() else event.loss(), **kwargs)

        return self._redo.make(perform, event, loss.detach)

    def step(self, original: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """engine.step()."""
        engine = self._p.engine
        if not self.listening:
            original(engine, *args, **kwargs)
        elif not self._redo.void:
            event = Call(original, (engine, *args), kwargs, ambient.take(engine))
            self._redo.make(lambda: original(engine, *args, **kwargs), event, lambda: None)

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any, writes: bool, alone: Callable[[], Any]) -> Any:
        """A collective of the script (writes: into tensors that it is given), or a checkpoint.

        alone: what happens instead in a void iteration, in which this rank is by itself. It must not make values up.
        """
        if not self.listening:
            return function(*args, **kwargs)
        if self._redo.void:
            return alone()
        event = Call(function, args, kwargs, ambient.take(self._p.engine), writes)
        tried = False

        def perform() -> Any:
            nonlocal tried
            if tried:
                event.renew()
            tried = True
            return function(*args, **kwargs)

        result = self._redo.make(perform, event, alone)
        event.made()
        return result

    def launch(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Handle:
        """A send or a receive of the script: `function` begins it and returns a handle."""
        if self._redo.void:
            self.refuse_alone()
        event = Launch(function, args, kwargs, ambient.take(self._p.engine))
        self._redo.make(event.begin, event, self.refuse_alone)
        return Handle(event, self._settle)

    def _settle(self, event: Launch, ask: Callable[[], Any]) -> Any:
        """The script waits for what `event` has begun."""
        if event.settled or not self.listening:
            return ask()
        if self._redo.void:
            self.refuse_alone()
        return self._redo.make(ask, Settle(event, ambient.take(self._p.engine)), self.refuse_alone)

    def refuse_alone(self) -> NoReturn:
        """A collective of the script in a void iteration: what it gave would be a made-up value.

        Raises FailoverError.
        """
        raise self._p.fail(
            FailoverError(
                "an iteration must be repeated, and the script goes on in it with a collective whose result nobody "
                f"can give: it wrote into a tensor that it had given to engine(...). Give it a copy. Or: {REMEDIES}"
            )
        )

    def next(self, tracked: Tracked) -> Any:
        """next(iterator) of a data loader. Raises StopIteration."""
        if self._redo.busy:
            return tracked.source.next()
        if self._redo.open is None and self._answered:
            self._arrive(tracked)
        elif self._redo.open is not None and self._feed.is_training(tracked):
            self._redo.void = False
            self._seal_if_stepped(AT_LOADER)
            self._redo.void = False  # sealing was interrupted: the batches are handed out here again
        return self._feed.next(tracked)

    def check_unused(self) -> None:
        """Raises FailoverError if training has begun in an unmodified loop: batches() comes too late."""
        if self._redo.open is not None:
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
        if self._redo.void:
            raise self._p.fail(
                FailoverError(
                    "the script ended in an iteration that a failure had voided: its loop counts iterations by itself "
                    f"and is one ahead. {REMEDIES}"
                )
            )
        self._seal_if_stepped(AT_LOADER)
        self._redo.make(self._failover.finish, None, lambda: None)
        self._ended = True

    # ---- starting and joining ---------------------------------------------------------------------------------------

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
        self._redo.begin(self._p.start())

    # ---- sealing ----------------------------------------------------------------------------------------------------

    def _seal_if_stepped(self, joined_at: str) -> None:
        assert self._redo.open is not None
        if self._failover.version == self._redo.open.version:
            self._redo.make(lambda: self._seal(joined_at), None, lambda: None)

    def _seal(self, joined_at: str) -> None:
        record = self._redo.open
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
        self._redo.forget(oldest)
        self._redo.begin(record.version)
