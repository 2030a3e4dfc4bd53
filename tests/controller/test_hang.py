"""Who is blamed when a job makes no progress."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_LEAVING, ACTIVITY_USER
from ff_core.controller.hang import Hang, HangDetector

WAITING, BUSY = ACTIVITY_COLLECTIVE, ACTIVITY_USER


@pytest.mark.parametrize(
    ("ranks", "blamed"),
    [
        ([(5, WAITING), (5, BUSY), (5, ACTIVITY_GATE)], [1]),  # the others wait for it
        ([(5, WAITING), (4, WAITING), (5, WAITING)], [1]),  # it is in another collective, behind the others
        ([(5, BUSY), (4, BUSY), (5, BUSY)], [1]),  # on a GPU: the others wait for the device
        ([(5, BUSY), (5, BUSY), (5, BUSY)], []),
        ([(5, WAITING), (5, WAITING), (5, WAITING)], []),
    ],
)
def test_who_is_blamed(ranks: list[tuple[int, int]], blamed: list[int]) -> None:
    hangs = HangDetector(30.0)
    for now in (0.0, 29.0):
        for rank, (progress, activity) in enumerate(ranks):
            hangs.observe(rank, progress, activity, now)
        assert hangs.judge(3, now) is None
    hang = hangs.judge(3, 31.0)
    assert hang is not None and hang.culprits == blamed and not hang.short
    assert ("nobody is blamed" in hang.text) == (blamed == []) and "30 s" in hang.text
    hangs.observe(2, 6, BUSY, 31.0)
    assert hangs.judge(3, 32.0) is None


def test_a_stopped_rank_is_to_blame_though_all_wait() -> None:
    hangs = HangDetector(30.0)
    for rank in range(3):
        hangs.observe(rank, 5, WAITING, 0.0, 0.0, rank == 1)
    hang = hangs.judge(3, 31.0)
    assert hang is not None and hang.culprits == [1] and hang.stopped


def test_ranks_that_were_never_heard_of_are_not_blamed() -> None:
    hangs = HangDetector(30.0)
    hangs.observe(0, 5, BUSY, 0.0)
    assert hangs.judge(2, 100.0) is None


def test_ranks_that_are_through_are_not_to_blame() -> None:
    detector = HangDetector("auto")
    for rank, activity in enumerate((ACTIVITY_LEAVING, ACTIVITY_COLLECTIVE, ACTIVITY_COLLECTIVE)):
        detector.observe(rank, 5, activity, 0.0)
    assert detector.uneven(3, 59.0) is None  # they may be slow
    assert detector.uneven(3, 61.0) == ([0], [1, 2])
    assert detector.uneven(4, 61.0) is None  # not everybody has been heard of
    detector.observe(1, 6, ACTIVITY_COLLECTIVE, 60.0)
    assert detector.uneven(3, 61.0) is None
    detector.observe(1, 6, ACTIVITY_USER, 62.0)  # it computes: that may take long, and if it hangs it is to blame
    assert detector.uneven(3, 10_000.0) is None
    hang = detector.judge(3, 10_000.0)
    assert hang is not None and hang.culprits == [1]


class Iterating:
    """Three ranks whose iterations take 0.5 s, with a heartbeat in each; then rank 1 makes no progress any more."""

    def __init__(self, timeout_s: float | str = "auto", iterations: int = 20) -> None:
        self.hangs, self.now, self.progress = HangDetector(timeout_s), 0.0, 0
        for _ in range(iterations):
            self.iterate()

    def iterate(self) -> None:
        self.now += 0.5
        self.progress += 1
        for rank in range(3):
            self.hangs.observe(rank, self.progress, BUSY, self.now)
        self.hangs.iterations(1, self.now)

    def stand(self, for_s: float, activity: int = BUSY, still: bool = True, stopped: bool = False) -> Hang | None:
        """Rank 1, while the others wait for it. What is found on the way, or None."""
        begin = self.now
        while self.now < begin + for_s:
            self.now += 0.1
            for rank in (0, 2):
                self.hangs.observe(rank, self.progress + 1, WAITING, self.now, self.now - begin)
            self.hangs.observe(1, self.progress, activity, self.now, self.now - begin if still else 0.0, stopped)
            hang = self.hangs.judge(3, self.now)
            if hang is not None:
                self.hangs.blamed(hang)
                return hang
        return None


def test_who_does_nothing_at_all_is_blamed_after_twice_an_iteration_and_a_second() -> None:
    assert Iterating().stand(1.9) is None
    job = Iterating()
    hang = job.stand(2.3)
    assert hang is not None and hang.culprits == [1] and hang.short
    assert re.search(r"done nothing for 2\.\d s while others wait for it \(hang_timeout_s = auto: 2\.0 s", hang.text)


@pytest.mark.parametrize(
    "what",
    [
        {"still": False},  # it evaluates, compiles, saves
        {"activity": WAITING},  # a network may come back
    ],
)
def test_who_does_something_or_waits_has_much_longer(what: dict[str, Any]) -> None:
    job = Iterating()
    assert job.stand(500.0, **what) is None


def test_who_is_stopped_is_blamed_whatever_it_was_at() -> None:
    job = Iterating()
    hang = job.stand(3.0, activity=WAITING, stopped=True)
    assert hang is not None and hang.culprits == [1] and hang.short


@pytest.mark.parametrize(("ranks", "still", "blamed"), [(4, 2, False), (16, 2, True), (16, 3, False)])
def test_many_that_do_nothing_wait_for_something_else(ranks: int, still: int, blamed: bool) -> None:
    """For the storage, for instance: a replacement would wait for it, too."""
    hangs = HangDetector("auto")
    for now in range(20):
        for rank in range(ranks):
            hangs.observe(rank, now, BUSY, float(now))
        hangs.iterations(1, float(now))
    for tenth in range(100):
        for rank in range(ranks):
            waits = rank >= still
            hangs.observe(rank, 19 + waits, WAITING if waits else BUSY, 20.0 + tenth / 10, tenth / 10)
    hang = hangs.judge(ranks, 30.0)
    assert (hang is not None) == blamed


def test_an_iteration_with_a_stop_in_it_is_no_measure() -> None:
    job = Iterating()
    job.hangs.looked()
    job.now += 100.0
    job.iterate()
    assert job.hangs.short_s == 2.0


def test_a_given_time_is_kept_and_the_first_iterations_say_nothing() -> None:
    assert Iterating(30.0).stand(29.0) is None
    assert Iterating(iterations=9).stand(500.0) is None


def test_a_rank_that_sleeps_on_purpose_is_replaced_once() -> None:
    """Its successor does the same, and is let; from then on it is known how long that takes here."""
    job = Iterating()
    assert job.stand(3.0) is not None
    assert job.stand(60.0) is None
    for _ in range(3):
        job.iterate()
    assert job.stand(100.0) is None
    job.iterate()
    hang = job.stand(300.0)
    assert hang is not None and hang.short, "twice what has ended by itself, and a second"
