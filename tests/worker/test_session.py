"""What a halted worker says about its live tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.copy.page import StatusPage
from ff_core.worker.fence import Fence
from ff_core.worker.session import Failover


class Engine:
    """Of a replicator: `version` is in flight, its step still queued on the device, until the cancel forgets both."""

    def __init__(self, version: int) -> None:
        self.pending: int | None = version

    def step_ended(self, version: int) -> bool:
        return version != self.pending

    def cancel(self) -> None:
        self.pending = None


@pytest.fixture
def failover() -> tuple[Failover, list[tuple[int, bool]]]:
    """At version 3, sealed; and what it has said."""
    said: list[tuple[int, bool]] = []
    made: Any = object.__new__(Failover)
    made.rank, made.is_newcomer, made.registry, made.replicator = 0, False, None, None
    made.page = StatusPage.create()
    made.fence = Fence(made.page, 0)
    made.fence.resume(3, lambda version: None)
    made.inbox = SimpleNamespace(poke=lambda: None)
    made.link = SimpleNamespace(send=lambda name, **fields: said.append((fields["version"], fields["sealed"])))
    return made, said


def test_whole_tensors_are_reported_again(failover: tuple[Failover, list[tuple[int, bool]]]) -> None:
    made, said = failover
    made.halt(1)
    made.halt(2)
    assert said == [(3, True), (3, True)]


def test_a_step_that_a_halt_found_unfinished_stays_so(failover: tuple[Failover, list[tuple[int, bool]]]) -> None:
    made, said = failover
    made.replicator = Engine(3)  # type: ignore[assignment]
    made.halt(1)
    made.halt(2)
    assert said == [(-1, False), (-1, False)] and made.page.load("live") == 0
    made.fence.begin_epoch(2)
    made.fence.resume(2, lambda version: None)
    made.halt(3)
    assert said[-1] == (2, True)
