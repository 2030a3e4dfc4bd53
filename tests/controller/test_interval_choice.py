"""Which interval is chosen from what ranks measure."""

from __future__ import annotations

import itertools
import random

import pytest

from ff_core.contract.schedule import MOST
from ff_core.controller.interval_choice import TRIED, IntervalChoice, Measured


class Network:
    """What ranks measure: a copy stops the training for fixed_s, is on its way for under_way_s, and slows iterations
    down by slowed_s meanwhile. noise_s: how uncertain that is."""

    def __init__(
        self,
        fixed_s: float,
        under_way_s: float,
        iteration_s: float = 1.0,
        *,
        strict: bool = False,
        slowed_s: float = 0.0,
        noise_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.fixed_s, self.under_way_s, self.iteration_s, self.strict = fixed_s, under_way_s, iteration_s, strict
        self.slowed_s, self.noise_s, self.random = slowed_s, noise_s, random.Random(seed)

    def at(self, interval: int) -> Measured:
        waited = 1 if self.strict else interval
        late_s = max(0.0, self.under_way_s - waited * self.iteration_s)
        clear = next(k for k in range(1, interval + 1) if k * self.iteration_s >= self.under_way_s or k == interval)
        slowed_s = self.random.gauss(self.slowed_s, self.noise_s) if clear < interval else None
        return Measured(self.fixed_s, late_s, clear, self.iteration_s, slowed_s)


def choice(ranks: int = 1, *, strict: bool = False, on_device: bool = False) -> IntervalChoice:
    return IntervalChoice(ranks, 0.01, strict=strict, on_device=on_device)


def run(chosen: IntervalChoice, *networks: Network, reports: int = 20) -> list[int]:
    """The interval after each report of all ranks; networks: of each rank."""
    intervals = []
    for _ in range(reports):
        for rank, network in enumerate(networks):
            chosen.measured(rank, chosen.interval, network.at(chosen.interval))
        chosen.choose()
        intervals.append(chosen.interval)
    return intervals


def test_one_where_that_is_free_but_for_trials() -> None:
    intervals = run(choice(), Network(0.006, 0.9), reports=1000)
    assert intervals[:9] == [1, 3, 3, 3, 3, 3, 3, 1, 1]
    begun = [number for number, (a, b) in enumerate(itertools.pairwise(intervals)) if a < b]
    assert set(intervals) == {1, 3} and intervals.count(3) == 6 * len(begun)
    assert [b - a for a, b in itertools.pairwise(begun)] == [70, 134, 262, 518]


def test_what_copies_slow_iterations_down_by_counts() -> None:
    """Nothing stands still, and every iteration takes 4 % longer."""
    assert run(choice(), Network(0.001, 0.5, slowed_s=0.04))[-1] == 5
    assert run(choice(strict=True), Network(0.0, 0.5, strict=True, slowed_s=0.024))[-1] == 3
    assert run(choice(3), *(Network(0.0, 0.5, slowed_s=0.04, noise_s=0.01, seed=s) for s in range(3)))[-1] >= 3


@pytest.mark.parametrize("seed", range(20))
def test_noise_passes_for_no_slowing(seed: int) -> None:
    """Iterations that differ by 5 % of themselves, and copies that cost nothing."""
    intervals = run(choice(), Network(0.001, 0.5, noise_s=0.05, seed=seed), reports=400)
    assert intervals.count(1) > 300


def test_a_slowing_that_is_over_is_forgotten() -> None:
    chosen = choice()
    run(chosen, Network(0.001, 0.5, slowed_s=0.04))
    assert run(chosen, Network(0.001, 0.5), reports=100)[-1] == 1


def test_a_trial_in_which_nothing_could_be_compared_ends_too() -> None:
    intervals = run(choice(on_device=True), Network(0.001, 0.5), reports=20)
    assert 1 in intervals[7:]


def test_longer_after_two_reports_and_no_longer_than_needed() -> None:
    assert run(choice(), Network(0.002, 1.45))[:4] == [1, 2, 2, 2]
    assert set(run(choice(), Network(0.002, 4.5))[1:]) == {5}
    assert set(run(choice(), Network(0.025, 0.5))[1:]) == {3}
    assert set(run(choice(strict=True), Network(0.0, 1.05, strict=True))[1:]) == {5}


@pytest.mark.parametrize("fixed_s", [0.0, 0.001, 0.009, 0.011, 0.05, 0.1])
@pytest.mark.parametrize("under_way_s", [0.1, 0.99, 1.005, 1.02, 2.0, 3.3, 7.7])
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_chosen_keeps_within_the_budget_and_a_shorter_one_would_not(
    fixed_s: float, under_way_s: float, strict: bool
) -> None:
    network, chosen = Network(fixed_s, under_way_s, strict=strict), choice(strict=strict)
    run(chosen, network)
    kept = {k: chosen.share(k, network.at(k)) <= 0.01 + 1e-9 for k in range(1, MOST + 1)}
    assert chosen.interval == next((k for k in kept if kept[k]), MOST)


def test_the_slowest_rank_decides() -> None:
    assert set(run(choice(3), Network(0.0, 0.5), Network(0.0, 2.9), Network(0.001, 1.5))[1:]) == {3}


def test_nothing_is_chosen_before_every_rank_has_measured_at_this_interval() -> None:
    chosen, slow = choice(2), Network(0.0, 3.5)
    for _ in range(10):
        chosen.measured(0, 1, slow.at(1))
        assert chosen.choose() is None and chosen.interval == 1
    chosen.measured(1, 2, slow.at(2))  # of another interval
    assert chosen.choose() is None
    chosen.measured(1, 1, slow.at(1))
    assert chosen.choose() is None  # over the budget once
    chosen.measured(0, 1, slow.at(1))
    chosen.measured(1, 1, slow.at(1))
    assert chosen.choose() == (0, slow.at(1)) and chosen.interval == 4


def test_one_slow_moment_changes_nothing() -> None:
    chosen, good, bad = choice(), Network(0.001, 0.5), Network(0.001, 5.0)
    for _ in range(10):
        assert run(chosen, bad, reports=1) in ([1], [TRIED])
        assert run(chosen, good, reports=1) in ([1], [TRIED])


def test_shorter_again_when_the_network_is_faster_but_not_at_once() -> None:
    chosen = choice()
    assert run(chosen, Network(0.001, 6.5))[-1] == 7
    assert run(chosen, Network(0.001, 0.5), reports=5) == [7, 7, 7, 1, 1]


def test_shorter_when_iterations_take_longer() -> None:
    chosen = choice()
    assert run(chosen, Network(0.03, 0.1))[-1] == 3
    assert run(chosen, Network(0.03, 0.1, iteration_s=10.0))[-1] == 1


def test_within_the_margin_nothing_swings() -> None:
    chosen = choice()
    run(chosen, Network(0.0199, 0.5))
    assert set(run(chosen, Network(0.0099, 0.5), reports=100)) == {2}  # 1 would do, but only just
    assert run(chosen, Network(0.0069, 0.5))[-1] == 1


def test_a_device_is_tried_with_less_and_ever_more_rarely() -> None:
    chosen, network = choice(on_device=True), Network(0.001, 3.5)
    intervals = run(chosen, network, reports=400)
    trials = [number for number, (a, b) in enumerate(itertools.pairwise(intervals)) if b < a]
    gaps = [b - a for a, b in itertools.pairwise(trials)]
    assert set(intervals[2:]) == {3, 4} and len(trials) >= 4
    assert all(b > 1.5 * a for a, b in itertools.pairwise(gaps[1:])) and intervals.count(3) <= 2 * len(trials)
    faster = run(chosen, Network(0.001, 0.5), reports=2000)
    assert faster[-1] == 1


def test_what_cannot_be_kept_ends_at_the_longest() -> None:
    chosen = choice()
    assert run(chosen, Network(5.0, 0.5))[-1] == MOST
    assert chosen.share(MOST, Network(5.0, 0.5).at(MOST)) > 0.01


def test_a_failover_begins_counting_anew_and_keeps_the_interval() -> None:
    chosen, slow = choice(), Network(0.0, 3.5)
    run(chosen, slow)
    chosen.measured(0, 4, Network(0.0, 9.5).at(4))
    chosen.choose()
    chosen.forget()
    chosen.measured(0, 4, Network(0.0, 9.5).at(4))
    assert chosen.choose() is None and chosen.interval == 4
