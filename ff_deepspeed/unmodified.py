"""The unmodified loop: a script in the usual style, of which nothing is known but the calls it makes.

    engine.load_checkpoint(...)                      # a replacement is answered from memory
    for batch in loader:
        loss = engine(batch); engine.backward(loss); engine.step()

A survivor is interrupted inside one of its calls, and goes on there: what the script has done since version v* is done
again (ff_deepspeed.recording), then the call is made once more, and the script notices nothing. Where that is
impossible the iteration is void: its calls do nothing, and the loader hands the same batches out again.

An iteration is sealed when the script asks the training loader for the next batch, or else calls engine(...) again
(ff_deepspeed.own_batches). That is also where a replacement joins: after it both make the same calls.
All this is the business of the thread that trains. Other threads may read the loader ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_deepspeed import ambient, kept_processes, places, switches, words
from ff_deepspeed.feed import NOWHERE, Feed, Tracked, place
from ff_deepspeed.gradients import Gradients
from ff_deepspeed.own_batches import OwnBatches
from ff_deepspeed.places import AT_FORWARD, AT_LOADER
from ff_deepspeed.recording import Backward, Call, Forward, Handle, Launch, Sealed, Settle
from ff_deepspeed.redo import Redo

if TYPE_CHECKING:
    from ff_deepspeed.engine import ProtectedEngine


class Unmodified:
    """The calls of one protected engine's script, from the first training forward on."""

    repeats_script = False

    def __init__(self, protection: ProtectedEngine) -> None:
        self._p = protection
        self._session = protection.session
        self._feed = Feed()
        self.trains_on = self._feed.is_training  # whether an iterator goes over the training loader
        self._redo = Redo(protection, self._feed)
        self._own, self._gradients = OwnBatches(protection), Gradients(protection)
        self._answered: dict[str, Any] | None = None  # a newcomer's load_checkpoint(): position of the version
        self._start_data: dict[str, Any] = {}  # what goes into the position of the version before the first iteration
        self._first = -1  # the first version that this process makes
        self._joined = self._ended = False  # this process has taken a dead rank's place; the script is over
        self._sealed_at: str | None = None  # the last version, if this process has sealed one
        self._thread = threading.main_thread().ident  # the one that trains
        self._beginning = threading.RLock()  # a thread that reads ahead may come while the other one joins

    # ---- Script (see ff_deepspeed.adapter) --------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        sealed = self._redo.sealed(self._session.version)
        if sealed is not None:
            return sealed.data
        return {**NOWHERE, "joined_at": AT_FORWARD, "start": True, **self._start_data}

    def client_state(self) -> dict[str, Any]:
        sealed = self._redo.sealed(self._session.version)
        return self._p.client.save() if sealed is None else sealed.client

    def restored(self, saved: dict[str, Any]) -> None:
        self._p.client.load(saved["client"])
        if self._answered is not None:
            if place(saved["data"]) != place(self._answered):
                raise self._p.fail(FailoverError(words.MOVED_ON))
            self._p.client.join(saved["client"])

    # ---- calls of the script ----------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether a call made now is the script's, in training, in the thread that trains."""
        return self._redo.open is not None and not self._redo.busy and self._is_trainer

    def forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """engine(...) in training."""
        engine = self._p.engine
        if self._redo.busy:
            return original(engine, *args, **kwargs)
        inputs, self._thread = (args, kwargs), threading.get_ident()
        with self._beginning:
            if self._redo.open is None:
                self._start(inputs)
        if self._redo.void and not self._redo.may_lift(inputs):
            return self._by_itself(original, args, kwargs)
        self._seal_if_stepped(AT_FORWARD, inputs)
        self._feed.used(inputs)
        self._p.session.given(inputs)
        event = Forward(original, args, kwargs, switches.take(self._p.adapter), ambient.take(engine))

        def perform() -> Any:
            self._session.inject("forward")
            return original(engine, *args, **kwargs)

        event.made(output := self._redo.make(perform, event, lambda: self._by_itself(original, args, kwargs)))
        if self._is_first and not self._feed.feeds:
            self._own.forward_over()
        return output

    def _by_itself(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """engine(...) in an iteration that does not count."""
        with switches.unused(self._p.adapter):
            return original(self._p.engine, *args, **kwargs)

    def backward(self, original: Callable[..., Any], loss: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        """engine.backward(loss)."""
        engine = self._p.engine
        if not self.listening:
            return original(engine, loss, **kwargs)
        if self._redo.void:
            return loss.detach()
        assert self._redo.open is not None
        self._session.loss(loss)
        event = Backward(original, loss, self._redo.open, kwargs, ambient.take(engine))
        if event.obstacle() is not None:
            raise self._p.fail(UnsupportedError(words.not_repeatable(event.obstacle())))

        def perform() -> Any:
            with event.watching():
                return original(engine, loss if event.fresh() else event.loss(), **kwargs)

        with self._gradients.watching():
            return self._redo.make(perform, event, loss.detach)

    def step(self, original: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """engine.step()."""
        engine = self._p.engine
        if not self.listening:
            original(engine, *args, **kwargs)
        elif not self._redo.void:
            self._own.step_begins()
            event = Call(original, (engine, *args), kwargs, ambient.take(engine))
            self._gradients.stepping(self._redo.open, event.ambient)
            self._redo.make(lambda: original(engine, *args, **kwargs), event, lambda: None)
            if self._sealed_at != AT_LOADER and self._has_stepped():
                self._own.stepped()

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
        """What this call gave in a void iteration would be a made-up value. Raises FailoverError."""
        raise self._p.fail(FailoverError(words.alone(self._redo.reason)))

    def next(self, tracked: Tracked) -> Any:
        """next(iterator) of a data loader. Raises StopIteration."""
        if not self._is_trainer and self._redo.open is not None:
            return self._feed.next(tracked, own_thread=False)
        if self._redo.busy:
            return tracked.source.next()
        with self._beginning:
            arrives = self._redo.open is None and self._answered is not None
            if arrives:
                self._arrive(tracked)
            elif self._redo.open is None and self._is_trainer and not tracked.count():
                self._session.before_first_batch()
        if not arrives and self._redo.open is not None and self._feed.is_training(tracked):
            self._own.loader_asked()
            self._lift(tracked)
            self._seal_if_stepped(AT_LOADER, asked=tracked)
            self._lift(tracked)  # sealing was interrupted
        return self._feed.next(tracked, own_thread=self._is_trainer)

    def _lift(self, tracked: Tracked) -> None:
        """Of a void iteration: its batches are handed out again, to a script that is where the version was sealed."""
        if self._redo.void and not self._feed.runs_ahead:
            self._redo.void = False
            self._session.script_again()
            self._feed.count_back(tracked)

    def pass_begins(self, loader: int) -> None:
        """A library begins `loader` (its number) anew, and keeps nothing of an iterator before."""
        if self.listening and not self._redo.void:
            self._feed.give_up(loader)

    def check_unused(self) -> None:
        """Raises FailoverError if training has begun in an unmodified loop: batches() comes too late."""
        if self._redo.open is not None:
            raise FailoverError(words.TOO_LATE)

    def answered(self, data: dict[str, Any]) -> None:
        """A newcomer's load_checkpoint() was answered: its script knows where to go on. data: of the version."""
        self._answered = data
        self._own.answered(data)

    def end(self) -> None:
        """The script is over, or destroys its groups: wait until nobody needs this rank any more."""
        if self._session.is_newcomer and self._answered is not None:
            self._join()  # at the very end of training: the others are waiting here too
        if all(thread.ident != self._thread for thread in threading.enumerate()):
            self._thread = threading.get_ident()  # another one has trained, and has ended
        if self._ended or not self.listening:
            return
        if self._redo.void:
            raise self._p.fail(FailoverError(words.ENDED_VOID))
        self._seal_if_stepped(AT_LOADER)
        self._redo.make(self._session.finish, None, lambda: None)
        self._feed.close()
        self._ended = True

    # ---- starting and joining ---------------------------------------------------------------------------------------

    @property
    def _is_first(self) -> bool:
        """Whether this is the job's first iteration: what is found out now is still told before training."""
        return self._redo.open is not None and self._redo.open.version == self._first and not self._joined

    @property
    def _is_trainer(self) -> bool:
        return threading.get_ident() == self._thread

    def _start(self, inputs: Any) -> None:
        """The first training forward: protection begins, or a newcomer joins that has not yet."""
        if self._session.is_newcomer:
            saved = self._session.saved_scalars()
            step = saved["trainer"]["engine"]["global_steps"]
            if step > 0 and self._answered is None:
                raise self._p.fail(FailoverError(words.from_the_start(step)))
            self._own.prove(saved["data"], inputs)
        else:
            if not self._feed.goes_on(inputs):
                self._session.before_first_batch(False)
            self._p.client.begins(self._feed.is_asked, self._feed.sees(inputs), self._session.may_restart)
            self._start_data = {"own": self._own.start(inputs)}
        self._join()
        self._feed.begin_training(self._session.version, inputs)
        places.check_loader(self._feed, self._p.fail)

    def _arrive(self, tracked: Tracked) -> None:
        """A newcomer asks a loader for a batch: go to its position, and join if the others sealed at this place."""
        data = self._session.saved_scalars()["data"]
        if self._feed.go_to(tracked, data) and data["joined_at"] == AT_LOADER:
            places.go_to(data)
            self._join()
            self._redo.first = -1
            self._feed.begin_training(self._session.version)

    def _join(self) -> None:
        self._p.adapter.script, self._joined = self, self._session.is_newcomer
        if self._joined:
            kept_processes.expect(self._session.saved_scalars()["data"].get("processes", {}))
        self._redo.begin(self._p.start())
        self._redo.first = self._session.version
        self._first = self._session.version + 1
        self._answered = None  # from here on it is a rank like the others, which may go back to any version

    # ---- sealing ----------------------------------------------------------------------------------------------------

    def _has_stepped(self) -> bool:
        return self._redo.open is not None and not self._redo.void and self._session.version == self._redo.open.version

    def _seal_if_stepped(self, joined_at: str, inputs: Any = None, asked: Tracked | None = None) -> None:
        if self._has_stepped():
            self._redo.make(lambda: self._seal(joined_at, inputs, asked), None, lambda: None)

    def _seal(self, joined_at: str, inputs: Any, asked: Tracked | None) -> None:
        record = self._redo.open
        assert record is not None
        if record.sealed is None:
            self._sealed_at = joined_at
            data = {**self._feed.position(asked), "joined_at": joined_at, "around": places.taken(self._feed, asked)}
            data["processes"] = kept_processes.positions(data["loader"])
            client = self._p.client.save()
            if inputs is not None:
                client, data["own"] = self._own.seal(inputs, refuse=self._is_first)
            adapter = self._p.adapter
            around = ambient.take(self._p.engine), switches.take(adapter), adapter.buffers.copy()
            record.sealed = Sealed(*around, client, data)
        self._p.persist()
        self._session.seal()
        record.release()
        self._feed.seal(record.version)
        oldest = self._session.oldest_needed
        self._feed.forget(oldest)
        self._redo.forget(oldest)
        self._redo.begin(record.version)
