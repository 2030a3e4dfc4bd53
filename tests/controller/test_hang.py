"""Who is blamed when a job makes no progress."""

from __future__ import annotations

import pytest

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_GATE, ACTIVITY_LEAVING, ACTIVITY_USER
from ff_core.controller.hang import HangDetector

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
        assert hangs.culprits(3, now) == [] and not hangs.stalled(3, now)
    assert hangs.culprits(3, 31.0) == blamed and hangs.stalled(3, 31.0)
    hangs.observe(2, 6, BUSY, 31.0)
    assert hangs.culprits(3, 32.0) == [] and not hangs.stalled(3, 32.0)


def test_ranks_that_were_never_heard_of_are_not_blamed() -> None:
    hangs = HangDetector(30.0)
    hangs.observe(0, 5, BUSY, 0.0)
    assert not hangs.stalled(2, 100.0) and hangs.culprits(2, 100.0) == []


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
    assert detector.culprits(3, 10_000.0) == [1]
