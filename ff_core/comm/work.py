"""Work handles that cannot outlive their generation.

A framework may keep a handle for as long as it likes. `SwappableWork` stands in front of the inner group's handle and
lets go of it when the generation ends: from then on every method raises `FailoverInterrupt`, and nothing keeps old
sockets or buffers alive. C++ callers (DDP's reducer, functional collectives) reach the same methods.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from . import compat, waiting
from .host import ACTIVITY_COLLECTIVE

if TYPE_CHECKING:
    from .cell import Cell
    from .host import Collective

_future_value = torch._C.Future.value  # torch's own: what `patches` puts in its place waits for a verdict


class Waits(Enum):
    """How to wait for an inner handle. gloo may forget a waiter when its connections are cut: see `waiting`."""

    INNER = "as torch does"
    SLICES = "leaving it and coming back, to look for a halt"
    ASIDE = "in a thread, which is left behind if need be"


class DoneWork(compat.Work):
    """A handle of something that is already complete. `tensors`: its outputs; `source`: who sent, for a receive."""

    def __init__(self, tensors: list[torch.Tensor], source: int | None = None) -> None:
        super().__init__()
        self._tensors = tensors
        self._source = source

    def wait(self, timeout: timedelta = compat.NO_TIMEOUT) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> list[torch.Tensor]:
        return self._tensors

    def synchronize(self) -> None:
        return None

    def block_current_stream(self) -> None:
        return None

    def source_rank(self) -> int:
        return self._source_rank()

    def _source_rank(self) -> int:
        if self._source is None:
            raise RuntimeError("source rank is only known of recv_anysource")
        return self._source

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
        future.set_result(self._tensors)
        return future

    def get_future_result(self) -> torch.futures.Future[int]:
        future: torch.futures.Future[int] = torch.futures.Future()
        future.set_result(0)  # WorkResult.SUCCESS
        return future


class SwappableWork(compat.Work):
    """The handle given out instead of `inner`, a handle of the generation in `cell`.

    on_done: called once, when success was first observed (the journal copies the outputs then).
    limit: timeout of a wait that is given none. gloo's sends and receives would use the one they connected with.
    waits: how to wait for `inner`: see Waits.
    collective: what `inner` is to the device that runs it; ended when a stream has waited for it.
    """

    def __init__(
        self,
        cell: Cell,
        inner: Any,
        on_done: Callable[[Any], None] | None,
        limit: timedelta | None = None,
        waits: Waits = Waits.INNER,
        collective: Collective | None = None,
    ) -> None:
        super().__init__()
        self._cell = cell
        self._inner = inner
        self._on_done = on_done
        self._limit = limit
        self._waits = waits
        self._collective = collective
        cell.works.add(self)

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
        if inner is None or self._cell.registry.over:
            raise self._cell.registry.interrupt()
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
        registry, given = self._cell.registry, timeout
        if not timeout and self._limit is not None:
            timeout = self._limit
        failure: BaseException | None = None
        registry.host.enter(ACTIVITY_COLLECTIVE)
        try:
            inner = self._alive()
            result = self._wait(inner, timeout)
        except Exception as error:
            failure = error
        finally:
            inner = None
            registry.host.leave()
        if failure is not None:
            try:
                # A user who waits in slices expects the timeout back at once.
                if not (given and not registry.over and compat.is_timeout(failure)):
                    registry.failed(failure, self._cell.epoch)
                raise failure
            finally:
                failure = None  # it refers to this frame: together they would keep all callers' frames alive
        self._alive()
        self._done()
        return result

    def _wait(self, inner: Any, timeout: timedelta) -> Any:
        if self._waits is Waits.SLICES:
            return waiting.in_slices(self._cell.registry, inner, timeout)
        if self._waits is Waits.ASIDE:
            return waiting.aside(self._cell.registry, lambda: inner.wait(timeout))
        return inner.wait(timeout)

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
            if self._inner is None or self._cell.registry.over:
                raise self._cell.registry.interrupt()
            try:
                value = _future_value(inner)
            except Exception as error:
                self._cell.registry.note_failure(error)
                raise
            self._done()
            return value

        if self._waits is Waits.INNER:
            return inner.then(finish)
        return waiting.Gate(self._cell.registry.cut, inner).future.then(finish)
