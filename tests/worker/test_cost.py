"""What a copied version costs, counted by a clock that the test moves."""

from __future__ import annotations

import pytest

from ff_core.worker.cost import CopyCosts, Cost
from tests.worker.moved_clock import MovedClock


class Loop:
    """One rank's iterations."""

    def __init__(self, *, on_device: bool = False) -> None:
        self.clock = MovedClock()
        self.heard: list[Cost] = []
        self.costs = CopyCosts(self.clock, on_device=on_device, report=self.heard.append, wall=lambda: self.clock.time)

    def iteration(
        self, due: bool = True, *, copied_s: float = 0.0, late_s: float = 0.0, begin_s: float = 0.0, body_s: float = 1.0
    ) -> None:
        """Body, gate, step. due: the step makes a version that is copied."""
        self.clock.time += body_s
        with self.costs.gate(due, committed=not late_s) as gate:
            self.clock.time += copied_s
            gate.copied()
            self.clock.time += late_s
        if due:
            with self.costs.beginning():
                self.clock.time += begin_s


def warm(*, on_device: bool = False) -> Loop:
    loop = Loop(on_device=on_device)
    for _ in range(4):
        loop.iteration()
    assert len(loop.heard) <= 1
    loop.heard.clear()
    loop.costs.measured.clear()
    return loop


def test_of_a_version_in_every_iteration() -> None:
    loop = warm()
    loop.iteration(begin_s=0.01)
    loop.heard.clear()
    loop.iteration(copied_s=0.25, late_s=0.5)
    (cost,) = loop.heard
    assert cost.fixed_s == pytest.approx(0.26) and cost.late_s == pytest.approx(0.5)
    assert cost.thread_s == pytest.approx(0.76) and cost.device_s == 0.0
    assert cost.lost_s == pytest.approx(0.76) and cost.iteration_s == pytest.approx(1.0)
    assert (cost.iterations, cost.clear) == (1, 1)


def test_iterations_that_copy_nothing_hide_nothing() -> None:
    loop = warm()
    loop.iteration(begin_s=0.5)
    loop.heard.clear()
    for _ in range(9):
        loop.iteration(due=False)
    assert loop.heard == []
    loop.iteration()
    (cost,) = loop.heard
    assert cost.lost_s == pytest.approx(0.5) and (cost.iterations, cost.clear) == (10, 1)
    assert cost.iteration_s == pytest.approx(1.0)


def test_when_a_version_was_committed_is_known_without_waiting_for_it() -> None:
    loop = warm()
    loop.heard.clear()
    for clear in (3, 4):  # there at the third gate; waited for at the last one
        for number in range(1, 5):
            loop.clock.time += 1.0
            with loop.costs.gate(number == 4, committed=number >= clear and clear < 4) as gate:
                gate.copied()
                loop.clock.time += 0.125 if clear == number == 4 else 0.0
        with loop.costs.beginning():
            pass
    assert [cost.clear for cost in loop.heard] == [3, 4]
    assert [cost.late_s for cost in loop.heard] == pytest.approx([0.0, 0.125])


def test_a_device_tells_later_and_its_wait_is_counted_apart() -> None:
    loop = warm(on_device=True)
    loop.iteration()
    loop.heard.clear()
    loop.clock.behind = 4
    loop.iteration(copied_s=0.25, late_s=0.125)
    assert loop.heard == []  # it has not come there
    loop.clock.behind = 0
    loop.iteration()
    first, second = loop.heard
    assert (first.device_s, first.late_s, first.lost_s) == pytest.approx((0.25, 0.125, 0.375))
    assert second.lost_s == 0.0


def test_the_first_iterations_and_those_of_a_failover_do_not_count() -> None:
    loop = Loop()
    for _ in range(3):
        loop.iteration(late_s=100.0)
    assert loop.heard == [] and loop.costs.iterations == 0
    loop.iteration()
    loop.iteration()
    assert [cost.late_s for cost in loop.heard] == [0.0, 0.0]
    loop.costs.dropped()
    for _ in range(4):
        loop.iteration(late_s=100.0)
    assert [cost.late_s for cost in loop.heard[2:]] == [100.0]


def test_a_gate_that_a_halt_interrupts_is_not_counted() -> None:
    loop = warm()
    loop.heard.clear()
    with pytest.raises(KeyError), loop.costs.gate(True, committed=False):
        raise KeyError
    loop.costs.dropped()
    assert loop.heard == []


def of_interval(loop: Loop, *bodies_s: float, clear: int, begin_s: float = 0.0) -> Cost:
    """The cost of a version whose next one comes after as many iterations."""
    loop.iteration(begin_s=begin_s)
    loop.heard.clear()
    for number, body_s in enumerate(bodies_s, 1):
        due, late = number == len(bodies_s), number < clear
        loop.iteration(due, body_s=body_s, late_s=1e-9 if late else 0.0)
    (cost,) = loop.heard
    return cost


def test_iterations_while_a_copy_is_under_way_are_compared_with_the_others() -> None:
    cost = of_interval(warm(), 1.5, 1.25, 1.0, 1.0, clear=2, begin_s=0.125)
    assert cost.slowed_s == pytest.approx(0.75) and cost.clear == 2
    assert cost.fixed_s == pytest.approx(0.125)  # to begin the copy is counted once


def test_nothing_to_compare_with_is_no_measurement() -> None:
    assert of_interval(warm(), 1.5, clear=1).slowed_s is None
    assert of_interval(warm(), 1.5, 1.5, 1.5, clear=3).slowed_s is None


def test_a_device_says_itself_how_long_its_iterations_took() -> None:
    cost = of_interval(warm(on_device=True), 1.5, 1.0, 1.0, clear=1)
    assert cost.slowed_s == pytest.approx(0.5)
