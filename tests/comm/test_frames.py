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


class Registry:
    over = False
    noted = None
    host = SimpleNamespace(enter=lambda activity: None, leave=lambda: None)

    def failed(self, error: BaseException, epoch: int | None) -> None:
        raise FailoverInterrupt(1)

    def interrupt(self) -> FailoverInterrupt:
        return FailoverInterrupt(1)


class Generation:
    def __init__(self) -> None:
        self.era, self.epoch, self.works, self.inner = Registry(), 0, weakref.WeakSet[Any](), Broken()


class Broken:
    def wait(self, timeout: Any) -> bool:
        raise RuntimeError("connection closed by peer")

    def barrier(self) -> None:
        raise RuntimeError("connection closed by peer")


class Local:
    """Something that lives in a frame only."""


def waiting() -> None:
    SwappableWork(Generation(), Broken(), None).wait()  # type: ignore[arg-type]


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
