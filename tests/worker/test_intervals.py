"""Which versions a rank copies, what it supplies after a halt, and what it keeps: as the intervals that it is told say.

The simulator (tests/controller) has the whole job's part of it; here are the product's session, gate and engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ff_core.errors import FailoverInterrupt, interrupted
from tests.worker.one_rank import OneRank
from tests.worker.test_contract import Trainer


@pytest.fixture
def start() -> Iterator[Callable[[int], tuple[OneRank, Trainer]]]:
    made: list[OneRank] = []

    def begin(interval: int) -> tuple[OneRank, Trainer]:
        job, trainer = OneRank(interval=interval), Trainer()
        made.append(job)
        job.session.attach(trainer)
        job.session.start_training()
        return job, trainer

    yield begin
    for job in made:
        job.close()


def copied(job: OneRank) -> set[int]:
    assert job.arena is not None
    return {info.version for info in job.arena.slot_infos()}


def published(job: OneRank, version: int) -> None:
    deadline = time.monotonic() + 60
    while job.w < version:
        assert time.monotonic() < deadline, f"W stays at {job.w}"
        time.sleep(0.001)


def test_copies_follow_the_intervals_that_come_with_w(start: Callable[[int], tuple[OneRank, Trainer]]) -> None:
    job, trainer = start(2)
    published(job, 0)
    seen = [0]
    told = {2: 3, 4: 1, 7: 4}  # what comes with W: it counts from the version after the next copied one
    for version in range(1, 13):
        job.interval = told.get(version, job.interval)
        trainer.iterate(job.session)
        if version in copied(job):
            seen.append(version)
            published(job, version)
    assert seen == [0, 2, 4, 7, 8, 12]


def test_a_rank_that_is_to_pause_waits_for_a_halt_behind_the_version_after_w(
    start: Callable[[int], tuple[OneRank, Trainer]],
) -> None:
    """And not before, though W has come; nothing of what it has done is lost."""
    job, trainer = start(2)
    published(job, 0)
    job.pause = 1
    for _ in range(2):
        trainer.iterate(job.session)
    published(job, 2)
    job.pause = 0
    trainer.iterate(job.session)
    assert job.session.version == 3, "it has seen the order, and is not there yet"
    seen: list[int] = []

    def halt() -> None:
        published(job, 4)
        time.sleep(0.5)
        seen.append(job.session.version)
        job.lose()

    halting = threading.Thread(target=halt)
    halting.start()
    trainer.iterate(job.session)
    assert seen == [4], "it did not go on before the halt"
    halting.join()
    with pytest.raises(FailoverInterrupt) as interrupt:
        trainer.iterate(job.session)
    assert job.session.recover(interrupt.value) == 4
    for version in range(5, 9):
        trainer.iterate(job.session)
        assert job.session.version == version, "once is enough"


def test_live_tensors_of_a_version_that_is_not_copied_are_not_supplied(
    start: Callable[[int], tuple[OneRank, Trainer]],
) -> None:
    job, trainer = start(3)
    for _ in range(5):
        trainer.iterate(job.session)
    assert job.session.version == 5
    job.lose()
    with pytest.raises(FailoverInterrupt):
        job.session.check()
    assert job.session.recover(FailoverInterrupt(1)) == 3 and trainer.is_at(3)
    for _ in range(3):
        trainer.iterate(job.session)
    job.lose()
    assert job.session.recover(FailoverInterrupt(2)) == 6 and trainer.is_at(6)  # as it is, from the tensors


def test_what_is_needed_again_is_kept_from_the_copied_version_before_w(
    start: Callable[[int], tuple[OneRank, Trainer]],
) -> None:
    job, trainer = start(4)
    for version in range(1, 13):
        trainer.iterate(job.session)
        oldest = job.session.oldest_needed
        assert oldest <= max(job.w - 4, -1)  # W grows meanwhile
        if version % 4 == 0:
            published(job, version)
            assert job.session.oldest_needed == version - 4
    job.session.finish()
    assert job.w == 12 and job.session.oldest_needed == 8


def test_the_last_version_is_copied_though_it_is_not_its_turn(start: Callable[[int], tuple[OneRank, Trainer]]) -> None:
    job, trainer = start(5)
    for _ in range(7):
        trainer.iterate(job.session)
    job.session.finish()
    published(job, 7)
    assert copied(job) == {5, 7}
    for _ in range(3):  # another loop: its first version is copied, so that the job is protected again
        trainer.iterate(job.session)
    assert copied(job) == {7, 8}


@pytest.mark.parametrize("halted", [False, True])
def test_another_loop_begins_when_its_mark_is_safe(
    start: Callable[[int], tuple[OneRank, Trainer]], halted: bool
) -> None:
    """Until then a death takes everybody back to the first loop's end. A halt is met in the loop, not in the mark."""
    job, trainer = start(5)
    for _ in range(7):
        trainer.iterate(job.session)
    job.session.finish()
    published(job, 7)
    job.let.clear()
    ends: list[int | None] = []

    def mark() -> None:
        ends.append(interrupted(job.session.mark)[1])

    begins = threading.Thread(target=mark)
    begins.start()
    begins.join(0.5)
    assert begins.is_alive() and job.session.version == 8 and job.w == 7
    if halted:
        job.lose()
    else:
        job.let.set()
    begins.join(30)
    assert ends == [None] and job.session.version == 8
    if halted:
        job.let.set()
        assert job.session.recover(FailoverInterrupt(1)) == 8 and trainer.is_at(7)  # the mark changes no tensor
    assert job.w == 8
