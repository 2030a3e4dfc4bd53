from __future__ import annotations

import pytest

from ff_core.worker.pacing import Clock, CopyWindow, HostClock
from tests.worker.moved_clock import MovedClock


@pytest.mark.parametrize("kind", [HostClock, MovedClock])
def test_moments_of_every_clock(kind: type[Clock]) -> None:
    clock = kind()
    first, second, third = (clock.now() for _ in range(3))
    parts = [clock.seconds(first, second), clock.seconds(second, third)]
    assert clock.seconds(first, third) == pytest.approx(sum(parts)) and all(part >= 0 for part in parts)
    assert clock.seconds(third, third) == 0


def iteration(window: CopyWindow, clock: MovedClock, seconds: float) -> None:
    window.begun()
    clock.time += seconds
    window.gate()


def test_predicts_only_from_enough_iterations_and_from_the_shortest() -> None:
    clock = MovedClock()
    window = CopyWindow(clock)
    for _ in range(7):
        iteration(window, clock, 2.0)
        assert window.sent_s() == 0.0
    iteration(window, clock, 1.0)
    assert 0.5 < window.sent_s() < 1.0  # room is left for the acknowledgement
    for _ in range(8):
        iteration(window, clock, 4.0)
    assert 2.0 < window.sent_s() < 4.0  # the short one is forgotten
    assert 0.0 < window.downloaded_s() < window.sent_s()  # what is sent has left the device before


def test_interrupted_and_repeated_gates_say_nothing() -> None:
    clock = MovedClock()
    window = CopyWindow(clock)
    for _ in range(8):
        iteration(window, clock, 2.0)
    before = window.sent_s()
    window.begun()
    clock.time += 0.001
    window.forget()
    window.gate()
    window.gate()
    assert window.sent_s() == before


def test_a_device_tells_later_what_it_took() -> None:
    clock = MovedClock()
    window = CopyWindow(clock)
    for seconds in (2.0,) * 7 + (1.0,):
        iteration(window, clock, seconds)
    clock.behind = 4  # it has not come to the end of the last two
    assert window.sent_s() == 0.0
    clock.behind = 0
    known = window.sent_s()
    assert 0.5 < known < 1.0
    clock.behind = 2
    iteration(window, clock, 0.1)
    assert window.sent_s() == known
    window.forget()  # a failover in between: what the device still does says nothing
    clock.behind = 0
    assert window.sent_s() == known


def test_the_hosts_own_clock() -> None:
    window = CopyWindow(HostClock())
    for _ in range(8):
        window.begun()
        window.gate()
    assert 0 <= window.sent_s() < 60
