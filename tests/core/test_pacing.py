from __future__ import annotations

from ff_core.pacing import CopyWindow


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def iteration(window: CopyWindow, clock: Clock, seconds: float) -> None:
    window.begun()
    clock.now += seconds
    window.gate()


def test_predicts_only_from_enough_iterations_and_from_the_shortest() -> None:
    clock = Clock()
    window = CopyWindow(clock)
    for _ in range(7):
        iteration(window, clock, 2.0)
        assert window.seconds() == 0.0
    iteration(window, clock, 1.0)
    assert 0.5 < window.seconds() < 1.0  # room is left for the acknowledgement
    for _ in range(8):
        iteration(window, clock, 4.0)
    assert 2.0 < window.seconds() < 4.0  # the short one is forgotten


def test_interrupted_and_repeated_gates_say_nothing() -> None:
    clock = Clock()
    window = CopyWindow(clock)
    for _ in range(8):
        iteration(window, clock, 2.0)
    before = window.seconds()
    window.begun()
    clock.now += 0.001
    window.forget()
    window.gate()
    window.gate()
    assert window.seconds() == before
