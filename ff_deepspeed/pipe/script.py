"""The unmodified loop around a pipeline:

    for step in range(n):
        loss = engine.train_batch(data_iter)        # data_iter: the same in each step, or DeepSpeed's own

One call is an iteration. DeepSpeed takes its micro-batches, exchanges activations and steps in it. A survivor that is
interrupted goes back inside of it: calls since version v* are made again with the micro-batches that they had, then
this one is.

An iteration is sealed at the next train_batch(). Between two of them the script takes no data, so its variables and
random states there are the version's. A replacement's script runs from where the job began; its first train_batch()
takes it to the place of the version: the data, the variables, the loops around the call (ff_core.state.loops).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import frames, loops
from ff_deepspeed import ambient, switches
from ff_deepspeed.pipe.feed import ITEMS, Batches, PipelineFeed
from ff_deepspeed.places import AT_FORWARD, AT_LOADER
from ff_deepspeed.recording import Event
from ff_deepspeed.redo import Redo
from ff_deepspeed.tracked import Tracked
from ff_deepspeed.unmodified import Unmodified

if TYPE_CHECKING:
    from ff_deepspeed.ambient import Ambient
    from ff_deepspeed.engine import ProtectedEngine
    from ff_deepspeed.switches import Switches

log = logging.getLogger("ff_deepspeed")

REMEDY = (
    "Loop over a range() or a list, with or without enumerate(); or `while engine.global_steps < n`. Or let FFTrainer "
    "count: `for batches in ff_deepspeed.batches(engine, loader, limit=n)`, inside `with ff_deepspeed.iteration()`, "
    "and there engine.train_batch(iter(batches))"
)
UNSEEN = "after a failure a replacement could not find its place in the loop around train_batch(): {what}. " + REMEDY
OTHER_LOOPS = "a replacement comes to train_batch() in other loops than the dead rank: {what}. " + REMEDY
LINES = (
    "train_batch() is called at {line}, and was called at {before} before. A replacement goes on at its first call of "
    "train_batch(): one for a rank that dies from here on is refused if that is at another line. " + REMEDY
)
IN_LIBRARY = (
    "train_batch() is called by {line}, which belongs to a library: after a failure a replacement could not find its "
    "place in that loop. Call it in a loop of the script's own"
)
UNREPEATABLE = (
    "the iterations after version {version} must be repeated, but {reason}. DeepSpeed takes the micro-batches itself, "
    "so the script cannot be given them again: copy what is changed in place"
)
ENDED = (
    "a rank died when its script was through its loop already, and a replacement cannot be taken there. Start the job "
    "again from its last checkpoint. With engine.load_checkpoint() before the loop and "
    "`ff_deepspeed.client_state(lambda: {...})` that gives the step, this is survived, too"
)


class Whole(Event):
    """A train_batch() or an eval_batch(). function: makes it with the micro-batches that it is given."""

    half = True

    def __init__(
        self, function: Callable[[Batches], Any], batches: Batches, switches: Switches, ambient: Ambient
    ) -> None:
        self._function = function
        self._batches = batches
        self.switches = switches
        self.ambient = ambient

    def obstacle(self) -> str | None:
        return self._batches.obstacle()

    def perform(self) -> Any:
        """Make the call, for the first time or again."""
        return self._function(self._batches.again())

    def replay(self, engine: Any) -> None:
        assert self.switches is not None
        self.switches.put()
        enabled, dtype = self.ambient.autocast
        with torch.autocast(engine.device.type, dtype=dtype, enabled=enabled):
            self.perform()


class GivesAgain(Redo):
    """Here a repeated call takes its data again, and computes its losses again: they are compared anew."""

    def _replay(self, version: int) -> None:
        self._session.given_again()
        super()._replay(version)

    def _make_void(self, version: int, reason: str, event: Event | None) -> None:
        raise self._p.fail(FailoverError(UNREPEATABLE.format(version=version, reason=reason)))


class Leads:
    """`ff_deepspeed.client.LibraryLoop`: a replacement needs no answer from load_checkpoint() to find its place."""

    def begins(self, fed: bool, seen: bool, may_restart: bool) -> None:
        pass

    def save(self) -> dict[str, Any]:
        return {}

    def load(self, saved: dict[str, Any]) -> None:
        pass


class PipelineScript(Unmodified):
    """The calls of one protected PipelineEngine's script, from the first train_batch() on."""

    def __init__(self, protection: ProtectedEngine) -> None:
        super().__init__(protection)
        self._data = PipelineFeed(protection.engine)
        self._feed = self._data
        self.trains_on = self._data.is_training
        self._redo = GivesAgain(protection, self._data)
        self._restored: dict[str, Any] = {}  # position of the version that was restored last
        self._warned = False
        self._given: Any = None  # to the last train_batch() of the exact loop
        protection.client.loop = Leads()

    def restored(self, saved: dict[str, Any]) -> None:
        super().restored(saved)
        self._restored = saved["data"]

    # ---- calls of the script ----------------------------------------------------------------------------------------

    def train_batch(self, original: Callable[..., Any], data_iter: Any) -> Any:
        """engine.train_batch(data_iter); None: from DeepSpeed's own loader."""
        engine = self._p.engine
        given = engine.data_iterator if data_iter is None else data_iter
        source = self._source_of(given if engine.is_first_stage() or engine.is_last_stage() else None)
        if self._redo.open is None:
            self._begin()
        else:
            before, self._data.loops = self._data.loops, self._places()
            self._seal_if_stepped(AT_FORWARD)
            self._warn_of_lines(before)
        event = self._event(lambda batches: original(engine, batches), source, self._session.given)
        with self._leaving(data_iter):
            return self._redo.make(event.perform, event, self.refuse_alone)

    def eval_batch(self, original: Callable[..., Any], data_iter: Any, args: Any, kwargs: Any) -> Any:
        """engine.eval_batch(data_iter, ...)."""
        engine = self._p.engine
        if not self.listening:
            return original(engine, data_iter, *args, **kwargs)
        event = self._event(lambda batches: original(engine, batches, *args, **kwargs), data_iter, None)
        with self._leaving(None):
            return self._redo.make(event.perform, event, self.refuse_alone)

    def _event(self, function: Callable[..., Any], source: Any, note: Callable[[Any], None] | None) -> Whole:
        adapter = self._p.adapter
        batches = Batches(source, note)
        return Whole(function, batches, switches.take(adapter), ambient.take(self._p.engine))

    @contextmanager
    def _leaving(self, data_iter: Any) -> Iterator[None]:
        """The engine keeps `data_iter` afterwards, as DeepSpeed has it; None: what it has now."""
        engine = self._p.engine
        before = engine.data_iterator, engine.training_dataloader
        try:
            yield
        finally:
            engine.data_iterator, engine.training_dataloader = before
            if data_iter is not None:
                engine.set_dataiterator(data_iter)

    def gives(self, data_iter: Any) -> bool:
        """In the exact loop: train_batch() is given this. Whether it is another iterator than the last time."""
        is_new = data_iter is not self._given
        self._given = None if isinstance(data_iter, ITEMS) else data_iter
        return is_new

    def forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Of one micro-batch, called by DeepSpeed within train_batch()."""
        self._session.inject("forward")
        return original(self._p.engine, *args, **kwargs)

    def backward(self, original: Callable[..., Any], loss: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        """Of one micro-batch, on the last stage."""
        self._session.loss(loss)
        return original(self._p.engine, loss, **kwargs)

    def next(self, tracked: Tracked) -> Any:
        """next(iterator) of a data loader: DeepSpeed asks, or the script for something else. Raises StopIteration."""
        return tracked.source.next()

    # ---- starting and joining ---------------------------------------------------------------------------------------

    def _source_of(self, iterator: Any) -> Any:
        try:
            return self._data.use(iterator, frames.line())
        except UnsupportedError as error:
            raise self._p.fail(error) from None

    def _begin(self) -> None:
        """The first train_batch(): protection begins, or a replacement joins."""
        self._thread = threading.get_ident()
        if not self._session.is_newcomer:
            self._data.loops = self._places()
            self._start_data = self._data.position()
            self._join()
            return
        self._find(self._session.saved_scalars()["data"])  # before joining: nobody should wait for it
        self._join()
        self._find(self._restored)  # another failure may have moved the version
        try:
            loops.go_to(self._restored["loops"])
        except loops.UnseenLoopError as error:
            raise self._p.fail(FailoverError(OTHER_LOOPS.format(what=error))) from None
        self._data.loops = self._restored["loops"]

    def _find(self, data: dict[str, Any]) -> None:
        if data["joined_at"] == AT_LOADER:
            raise self._p.fail(FailoverError(ENDED))
        try:
            self._data.go_to_place(data["place"])
        except FailoverError as error:
            raise self._p.fail(error) from None

    def _warn_of_lines(self, before: list[loops.Place]) -> None:
        now, then = ([line for line, _ in place] for place in (self._data.loops, before))
        if now != then and not self._warned:
            self._warned = True
            log.warning("%s", LINES.format(line=now[-1], before=then[-1]))

    def _places(self) -> list[loops.Place]:
        caller = frames.caller()
        if not frames.is_users(caller.f_code.co_filename, caller.f_globals.get("__name__")):
            line = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            raise self._p.fail(UnsupportedError(IN_LIBRARY.format(line=line)))
        try:
            return loops.places()
        except loops.UnseenLoopError as error:
            raise self._p.fail(UnsupportedError(UNSEEN.format(what=error))) from None
