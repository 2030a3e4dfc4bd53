"""An interrupt lets go of the frames it went through at once, not when the garbage collector comes by.

A schedule's frame holds activations and open contexts; one of these closing in a later iteration spoils it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.comm.group import SwappableGroup
from ff_core.comm.work import SwappableWork
from ff_core.errors import FailoverInterrupt
from tests.comm.standins import StandinEra


class Generation:
    """Its era ends when an operation fails."""

    def __init__(self) -> None:
        self.era, self.epoch, self.works = StandinEra(), 0, weakref.WeakSet[Any]()
        self.inner = Broken(self.era)


class Broken:
    def __init__(self, era: StandinEra) -> None:
        self._era = era

    def wait(self, timeout: Any) -> bool:
        self._era.halt(1)
        raise RuntimeError("connection closed by peer")

    def barrier(self) -> None:
        self.wait(None)


class Local:
    """Something that lives in a frame only."""


def waiting() -> None:
    generation = Generation()
    SwappableWork(generation, generation.inner, None).wait()  # type: ignore[arg-type]


def starting() -> None:
    generation = Generation()
    group = SimpleNamespace(registry=generation.era, leave_block=lambda: None)
    SwappableGroup._call(group, generation, "barrier", (), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("operation", [waiting, starting])
def test_nothing_is_left_for_the_collector(operation: Callable[[], None]) -> None:
    left: list[weakref.ref[Local]] = []

    def schedule() -> None:
        local = Local()
        left.append(weakref.ref(local))
        operation()

    gc.collect()
    gc.disable()
    try:
        try:
            schedule()
        except FailoverInterrupt:
            pass
        assert left[0]() is None
    finally:
        gc.enable()
