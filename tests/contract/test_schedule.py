"""Which versions are copied."""

from __future__ import annotations

import pytest

from ff_core.contract.schedule import CopySchedule, most_lost


def made(schedule: CopySchedule, until: int, intervals: dict[int, int]) -> list[int]:
    """Versions that are copied on the way to `until`. intervals: next version -> what comes with W before it."""
    copied = []
    for version in range(schedule.next, until + 1):
        if version == schedule.next:
            schedule.after_next(intervals.get(version, 1))
            schedule.copied(version)
            copied.append(version)
    return copied


def test_an_interval_counts_from_the_version_after_the_next() -> None:
    schedule = CopySchedule()
    schedule.begin_epoch(0, 1)
    assert made(schedule, 12, {1: 1, 2: 3, 5: 3, 8: 2, 10: 1}) == [1, 2, 5, 8, 10, 11, 12]


def test_an_epoch_begins_anew_and_knows_what_was_copied_before() -> None:
    schedule = CopySchedule()
    schedule.begin_epoch(0, 2)
    made(schedule, 6, {2: 2, 4: 2, 6: 5})
    assert [v for v in range(12) if schedule.is_copied(v)] == [2, 4, 6]
    schedule.begin_epoch(4, 3)  # 6 never happened
    assert schedule.next == 7 and [v for v in range(12) if schedule.is_copied(v)] == [2, 4]
    assert (schedule.before(4), schedule.before(-1)) == (2, -1)


def test_how_far_a_rank_may_be_and_how_far_back_it_may_have_to_go() -> None:
    schedule = CopySchedule()
    schedule.begin_epoch(0, 4)
    schedule.after_next(3)
    assert schedule.limit == 7
    schedule.copied(4)
    schedule.after_next(2)
    assert (schedule.next, schedule.limit) == (7, 9)
    schedule.copied(7)
    assert [schedule.before(w) for w in (0, 4, 7)] == [-1, 0, 4]


def test_the_last_version_of_a_loop_is_no_step_of_the_schedule() -> None:
    schedule = CopySchedule()
    schedule.begin_epoch(0, 4)
    schedule.copied(2)  # the loop ends
    assert schedule.next == 4 and schedule.is_copied(2) and schedule.before(2) == 0


def test_the_first_version_of_another_loop_is_copied() -> None:
    schedule = CopySchedule()
    schedule.begin_epoch(0, 4)
    schedule.copied(2)
    schedule.left(2)
    assert made(schedule, 11, {3: 4, 7: 4}) == [3, 7, 11]


@pytest.mark.parametrize(("interval", "strict", "lost"), [(1, True, 1), (1, False, 1), (4, True, 4), (4, False, 7)])
def test_what_a_death_costs(interval: int, strict: bool, lost: int) -> None:
    assert most_lost(interval, strict=strict) == lost
