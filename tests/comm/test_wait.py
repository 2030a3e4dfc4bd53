"""Waiting for gloo's collectives: a halt ends it even if gloo never notices that its sockets were cut."""

from __future__ import annotations

import threading
import weakref
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.comm import work as work_module
from ff_core.comm.work import SwappableWork
from ff_core.errors import FailoverInterrupt


class Registry:
    over = False
    host = SimpleNamespace(enter=lambda activity: None, leave=lambda: None)

    def failed(self, error: BaseException, epoch: int | None) -> None:
        if self.over:
            raise FailoverInterrupt(1)

    def interrupt(self) -> FailoverInterrupt:
        return FailoverInterrupt(1)


class Inner:
    """As gloo's handle: wait() raises when the time is up, and again and again what the operation failed with."""

    def __init__(self) -> None:
        self.done, self.error = threading.Event(), ""
        self.waits: list[float] = []

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        self.waits.append(timeout.total_seconds())
        if not self.done.wait(timeout.total_seconds() or None):
            raise RuntimeError("Operation timed out!")
        if self.error:
            raise RuntimeError(self.error)
        return True

    def is_completed(self) -> bool:
        return self.done.is_set()


def make(inner: Inner) -> tuple[SwappableWork, Registry]:
    registry = Registry()
    cell: Any = SimpleNamespace(registry=registry, epoch=0, works=weakref.WeakSet())
    return SwappableWork(cell, inner, None, patient=True), registry


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "_LOOK", timedelta(milliseconds=20))


def test_a_halt_ends_a_wait_that_would_never_end() -> None:
    inner = Inner()
    work, registry = make(inner)
    threading.Timer(0.1, lambda: setattr(registry, "over", True)).start()
    with pytest.raises(FailoverInterrupt):
        work.wait()
    assert not inner.done.is_set() and len(inner.waits) > 1


def test_what_takes_longer_is_waited_for() -> None:
    inner = Inner()
    work, _ = make(inner)
    threading.Timer(0.1, inner.done.set).start()
    assert work.wait() is True
    assert len(inner.waits) > 1


def test_the_operation_s_own_error_goes_up() -> None:
    inner = Inner()
    inner.error = "connection closed by peer"
    work, _ = make(inner)
    threading.Timer(0.05, inner.done.set).start()
    with pytest.raises(RuntimeError, match="connection closed by peer"):
        work.wait()


def test_a_user_s_timeout_holds() -> None:
    inner = Inner()
    work, _ = make(inner)
    with pytest.raises(RuntimeError, match="timed out"):
        work.wait(timedelta(milliseconds=70))
    assert sum(inner.waits) <= 0.12  # what was asked for, and the granularity of the last one
