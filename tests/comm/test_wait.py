"""Waiting for gloo: a halt ends it even if gloo never notices that its connections were cut."""

from __future__ import annotations

import threading
import weakref
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.comm import cut as cut_module
from ff_core.comm import waiting
from ff_core.comm.cut import Cut, Latch
from ff_core.comm.work import SwappableWork, Waits
from ff_core.errors import FailoverInterrupt
from tests.comm.standins import StandinEra


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


def make(inner: Inner, waits: Waits = Waits.SLICES) -> tuple[SwappableWork, StandinEra]:
    era = StandinEra()
    generation: Any = SimpleNamespace(era=era, epoch=0, works=weakref.WeakSet())
    return SwappableWork(generation, inner, None, waits=waits), era


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_SLICE_S", 0.02)


@pytest.mark.parametrize("waits", [Waits.SLICES, Waits.ASIDE])
def test_a_halt_ends_a_wait_that_would_never_end(waits: Waits) -> None:
    inner = Inner()
    work, era = make(inner, waits)
    threading.Timer(0.1, era.halt, (1,)).start()
    with pytest.raises(FailoverInterrupt):
        work.wait()
    assert not inner.done.is_set()
    inner.done.set()


def test_what_gloo_still_works_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may yet write to its tensors."""
    sleeps = threading.Event()
    monkeypatch.setattr(cut_module, "_gloo_is_idle", lambda used_before: sleeps.is_set())
    inner = Inner()
    work, era = make(inner)
    era.halt(1)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.in_slices(era, inner, timedelta(0))
        except FailoverInterrupt as interrupt:
            ended.append(interrupt)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and not ended
    sleeps.set()
    thread.join(20)
    assert ended and work is not None


def test_a_long_wait_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cut_module, "_TELL_S", 0.05)
    idle = threading.Event()
    monkeypatch.setattr(cut_module, "_gloo_is_idle", lambda used_before: idle.is_set())
    cut = Cut()
    cut.made()
    threading.Timer(0.3, idle.set).start()
    cut.wait_lost(lambda: True)
    (record,) = caplog.records
    assert "has waited 0.05 s for gloo's threads" in record.getMessage()


def test_a_latch_opens_once_when_its_operation_ends_or_is_lost() -> None:
    for lost in (False, True):
        cut, inner = Cut(), torch.futures.Future()  # type: ignore[var-annotated]
        latch = Latch(cut, inner)
        assert not latch.future.done()
        if lost:
            cut.made()
        else:
            inner.set_result([])
        latch.future.wait()
        inner.set_result([]) if lost else cut.made()
        assert not cut._latches


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
