"""A training loop of the script's own on megatron-core, without `pretrain()`: ff_megatron.protect().

    (data,) = ff_megatron.protect(model, optimizer, scheduler, data=[data])
    for number in ff_megatron.iterations(1000):
        with ff_megatron.iteration():
            losses = forward_backward_func(..., data_iterator=data, model=model, ...)
            optimizer.step()
            scheduler.step(increment=...)

A failure anywhere inside the `with` voids the iteration. The rank recovers, and the loop's next number is that of the
iteration that follows the version on which all ranks agreed. A replacement runs the same script. Its loop begins with
that same number.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ff_core.errors import FailoverError, FailoverInterrupt, UnsupportedError, interrupted
from ff_core.worker import session as sessions
from ff_core.worker.exact_loop import Body, ExactLoop
from ff_core.worker.guard import Guard
from ff_core.worker.items import Items
from ff_megatron import micro_batches, own_words, step, support
from ff_megatron.adapter import MegatronAdapter
from ff_megatron.in_data import InData
from ff_megatron.own_data import Given, OwnData, of
from ff_megatron.remedies import OF_OWN_LOOP

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession

log = logging.getLogger("ff_megatron")


class OwnLoop(ExactLoop[int]):
    """Of one process: all its iterations() calls. Their count is part of a version's place."""

    def __init__(self, session: AdapterSession, sources: Sequence[Given]) -> None:
        super().__init__(session, own_words.OF_LOOP, log)
        from megatron.core.rerun_state_machine import RerunDataIterator

        self._data = OwnData(sources, RerunDataIterator)
        self._calls = 0
        self._call = 0  # the call that runs now
        self._ends: dict[int, int] = {}  # version -> items of that call that were complete with it
        self._restored: dict[str, Any] = {}  # place of a restored version
        self._failed: FailoverError | None = None
        self.iterators = self._data.iterators
        session.at_end(self._check)

    # ---- ff_megatron.adapter.Training -------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        done = self._ends.get(self.session.version, 0)
        return {"call": self._call, "done": done, "left": self._left_at(), "data": self._data.places()}

    def load(self, saved: dict[str, Any]) -> None:
        self._restored = saved
        self._data.go(saved["data"])

    def drop(self) -> None:
        pass  # the rest is the script's, and is put back with its variables

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def items(self, total: int) -> Items[int]:
        """iterations(): numbers from 0 on, some of them again after a failure."""
        return Items(lambda items: self._run(total, items))

    def _run(self, total: int, items: weakref.ReferenceType[Items[int]]) -> Iterator[int]:
        self._check()
        self._asked(items)
        call, self._calls = self._calls, self._calls + 1
        place = self.session.saved_scalars()["training"] if self.session.is_newcomer else None
        if place is not None and place["call"] > call:
            self.session.passes_over()
            log.info("iterations() call %d was over before this process took over its rank: empty here", call + 1)
            return
        if place is not None:
            self._not_left(place)
            self._data.go(place["data"])  # before joining: nobody should wait for it
        version = self._begin(call)
        item = self._ends[version]
        self._count(item)
        while True:
            handed = min(item + 1, total)
            if item < total:
                body = self._body = Body(version, item, item)
                try:
                    yield item
                except GeneratorExit:
                    self._leave(body)
                    raise
                epoch = self._end(body)
            else:
                _, epoch = interrupted(partial(self.session.finish, again=True))
                if epoch is None:
                    return
            if epoch is None:
                version, item = self.session.version, item + 1
            else:
                version = self._recover(epoch)
                item = self._ends[version]
                self._count(item - handed)

    def feeds(self, iterator: Any) -> None:
        """See ff_megatron.micro_batches.Protected."""
        if iterator is not None and not any(iterator is known for known in self.iterators):
            raise UnsupportedError(own_words.OTHER_DATA.format(kind=type(iterator).__qualname__))

    def enter(self) -> Body:
        """See ExactLoop."""
        self._check()
        return super().enter()

    def _begin(self, call: int) -> int:
        """Returns the version that the call's first item follows, or in a newcomer its next item."""
        was_training, self._call, self._left = self.session.training, call, False
        if not was_training:
            self._ends = {}
            version = self.session.start_training()
            self._go_to(version)
        else:
            version = self._mark()
        self._sealed()
        return version

    def _mark(self) -> int:
        """A version of its own for "this call begins": what the script does between two calls is not repeated."""
        self._ends = {self.session.version + 1: 0}
        _, epoch = interrupted(self.session.mark)
        if epoch is not None:
            raise self.fail(FailoverError(own_words.OUTSIDE))
        return self.session.version

    def _end(self, body: Body) -> int | None:
        """The loop asks for more: seal. Returns the epoch of a halt, if there was one."""
        if not body.entered:
            raise FailoverError(own_words.NOT_ENTERED)
        if body.interrupt is not None or self.session.version == body.version:
            return body.interrupt  # an item without a step is done again from the version before it
        self._ends[self.session.version] = body.item + 1
        _, epoch = interrupted(self.session.seal)
        if epoch is None:
            self._sealed()
        return epoch

    def _sealed(self) -> None:
        oldest = self.session.oldest_needed
        self._data.sealed(self.session.version, oldest)
        self._ends = {version: end for version, end in self._ends.items() if version >= oldest}

    def _recover(self, epoch: int) -> int:
        version = self.session.recover(FailoverInterrupt(epoch))
        self._go_to(version)
        self.session.given_again()
        print(f"fftrain: rank {self.session.rank} goes on after version {version}", file=sys.stderr, flush=True)
        return version

    def _go_to(self, version: int) -> None:
        if self._restored:
            self._not_left(self._restored)
        if self._restored and self._restored["call"] != self._call:
            raise self.fail(FailoverError(own_words.OUTSIDE))
        self._ends = {v: end for v, end in self._ends.items() if v < version}
        self._ends[version] = self._restored["done"] if self._restored else 0

    def fail(self, error: FailoverError) -> FailoverError:
        log.critical("%s", error)
        self._failed = error
        return error

    def _check(self) -> None:
        """Raise what could not be raised."""
        if self._failed is not None:
            raise self._failed


guard: Guard[OwnLoop] = Guard(
    log,
    asked="ff_megatron.protect() is called",
    unasked="",  # asking is calling it
    second="ff_megatron.protect() was called a second time: one training per process can be protected",
)


def protect(model: Any, optimizer: Any, scheduler: Any, timers: Any, data: Sequence[Given]) -> list[Any]:
    """See ff_megatron.protect()."""
    mine = guard.session()
    if mine is None:
        return [of(source, 0) for source in data]
    from megatron.core.utils import get_model_config

    chunks = [model] if hasattr(model, "ddp_config") else list(model)
    support.check_own(chunks, optimizer, scheduler, mine.config)
    micro_batches.install(guard)
    mine.groups.listener = InData()
    loop = OwnLoop(mine, data)
    counted = () if timers is None else timers._timers.values()
    of_loop = get_model_config(chunks[0]), counted, loop, OF_OWN_LOOP
    mine.attach(MegatronAdapter(chunks, optimizer, scheduler, *of_loop))
    for chunk in chunks:
        chunk.register_forward_pre_hook(_given(mine), with_kwargs=True)
    step.protect(optimizer, mine)
    guard.hold(loop, by=optimizer)
    return loop.iterators


def _given(session: AdapterSession) -> Callable[[Any, Any, Any], None]:
    def given(chunk: Any, args: Any, kwargs: Any) -> None:
        """What is given to the model is noted: an iteration that is done again must be given the same."""
        if session.training and chunk.training:
            session.given([*args, *kwargs.values()])

    return given


def current() -> OwnLoop | None:
    """This process's protected loop, None if there is none. Raises FailoverError if it should have been asked for."""
    found = guard.current()
    if found is None and sessions.current() is not None:
        raise FailoverError(own_words.UNPROTECTED)
    return found
