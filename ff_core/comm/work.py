"""Work handles that cannot outlive their generation.

A framework may keep a handle for as long as it likes. `SwappableWork` stands in front of the inner group's handle and
lets go of it when the generation ends: from then on every method raises `FailoverInterrupt`, and nothing keeps old
sockets or buffers alive. C++ callers (DDP's reducer, functional collectives) reach the same methods.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ff_core.errors import judged

from . import compat, waiting
from .cut import Latch
from .host import ACTIVITY_COLLECTIVE

if TYPE_CHECKING:
    import weakref

    from .era import Era
    from .host import Collective

_future_value = torch._C.Future.value  # torch's own: what `patches` puts in its place waits for a verdict


class Waits(Enum):
    """How to wait for an inner handle. gloo may forget a waiter when its connections are cut: see `waiting`."""

    INNER = "as torch does"
    SLICES = "leaving it and coming back, to look for a halt"
    ASIDE = "in a thread, which is left behind if need be"


class Owner(Protocol):
    """The generation that a handle belongs to. works: its handles, to be let go of when it ends."""

    @property
    def era(self) -> Era: ...

    @property
    def epoch(self) -> int | None: ...

    @property
    def works(self) -> weakref.WeakSet[SwappableWork]: ...


class SwappableWork(compat.Work):
    """The handle given out instead of `inner`, a handle of `generation`.

    on_done: called once, when success was first observed (the journal copies the outputs then).
    limit: timeout of a wait that is given none. gloo's sends and receives would use the one they connected with.
    waits: how to wait for `inner`: see Waits.
    collective: what `inner` is to the device that runs it; ended when a stream has waited for it.
    """

    def __init__(
        self,
        generation: Owner,
        inner: Any,
        on_done: Callable[[Any], None] | None,
        limit: timedelta | None = None,
        waits: Waits = Waits.INNER,
        collective: Collective | None = None,
    ) -> None:
        super().__init__()
        self._generation = generation
        self._inner = inner
        self._on_done = on_done
        self._limit = limit
        self._waits = waits
        self._collective = collective
        generation.works.add(self)

    def release(self) -> None:
        """Lets go of the inner handle; the generation is over."""
        self._inner = None
        self._on_done = None
        self._forget()

    def _forget(self) -> None:
        collective, self._collective = self._collective, None
        if collective is not None:
            collective.forget()

    def _alive(self) -> Any:
        inner = self._inner
        if inner is None or self._generation.era.over:
            raise self._generation.era.interrupt()
        return inner

    def _passed(self) -> None:
        """The current stream has the operation behind itself."""
        collective, self._collective = self._collective, None
        if collective is not None:
            collective.end()

    def _done(self) -> None:
        self._passed()
        callback, self._on_done = self._on_done, None
        if callback is not None:
            callback(self._inner)

    def wait(self, timeout: timedelta = compat.NO_TIMEOUT) -> bool:
        """As torch's. A failure that belongs to a failover raises `FailoverInterrupt` instead."""
        era, given = self._generation.era, timeout
        if not timeout and self._limit is not None:
            timeout = self._limit

        def attempt() -> bool:
            era.host.enter(ACTIVITY_COLLECTIVE)
            try:
                return self._wait(self._alive(), timeout)
            finally:
                era.host.leave()

        def judge(failure: Exception) -> None:
            # A user who waits in slices expects the timeout back at once.
            if not (given and not era.over and compat.is_timeout(failure)):
                era.failed(failure, self._generation.epoch)

        result = judged(attempt, judge)
        self._alive()
        self._done()
        return result

    def _wait(self, inner: Any, timeout: timedelta) -> bool:
        if self._waits is Waits.SLICES:
            return waiting.in_slices(self._generation.era, inner, timeout)
        if self._waits is Waits.ASIDE:
            return bool(waiting.aside(self._generation.era, lambda: inner.wait(timeout)))
        return bool(inner.wait(timeout))

    def is_completed(self) -> bool:
        completed = bool(self._alive().is_completed())
        if completed and self._on_done is not None and self._alive().is_success():
            self._alive().wait()  # at once; the outputs may still be on their way to a GPU, on a stream of their own
            self._done()
        if completed:
            self._forget()
        return completed

    def is_success(self) -> bool:
        return self._alive().is_success()

    def exception(self) -> Any:
        return self._alive().exception()

    def result(self) -> list[torch.Tensor]:
        return self._alive().result()

    def synchronize(self) -> None:
        self._alive().synchronize()
        self._passed()

    def block_current_stream(self) -> None:
        self._alive().block_current_stream()
        self._passed()

    def source_rank(self) -> int:
        return self._alive()._source_rank()

    def _source_rank(self) -> int:
        return self._alive()._source_rank()

    def _get_op_type(self) -> int:
        return self._alive()._get_op_type()

    def _get_duration(self) -> float:
        return self._alive()._get_duration()

    def get_future_result(self) -> Any:
        return self._alive().get_future_result()

    def get_future(self) -> Any:
        """A future of the outputs; one of an interrupted operation raises, also when C++ waits for it."""

        inner = self._alive().get_future()

        def finish(_: Any) -> Any:
            if self._inner is None or self._generation.era.over:
                raise self._generation.era.interrupt()
            try:
                value = _future_value(inner)
            except Exception as error:
                self._generation.era.note_failure(error)
                raise
            self._done()
            return value

        if self._waits is Waits.INNER:
            return inner.then(finish)
        return Latch(self._generation.era.cut, inner).future.then(finish)
