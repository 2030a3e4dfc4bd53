"""The end of a training loop: who may leave it and when, and ends that are errors."""

from __future__ import annotations

import re

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_LEAVING
from tests.controller.harness import Job


def leave(job: Job, version: int) -> None:
    for rank in job.ranks:
        job.from_rank(rank, "leaving", epoch=job.state.epoch, version=version)


def test_nobody_leaves_before_the_last_version_is_committed_everywhere() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(4)
    leave(job, 5)
    assert not job.out.take("may_leave")
    job.commit(5)
    assert [(node, message["version"]) for node, message in job.out.take("may_leave")] == [(0, 5), (1, 5)]
    for rank in job.ranks:
        assert job.out.result is None
        job.die(rank, code=0)
    assert job.out.result == (0, "")


def test_a_stopped_job_lets_ranks_come_to_their_end() -> None:
    """After a signal iterations are still committed, a rank that leaves is let go at once, nobody is replaced."""
    job = Job().start()
    job.commit(1)
    job.out.sent.clear()
    job.controller.stop("stopped by SIGTERM")
    job.commit(2)
    assert [message["version"] for _, message in job.out.take("w")] == [2, 2]
    job.from_rank(1, "leaving", epoch=0, version=2)
    assert [(node, message["version"]) for node, message in job.out.take("may_leave")] == [(1, 2)]
    job.die(1, code=0, tail="")
    job.die(0)
    job.controller.node_down(1, "gone")
    job.out.clock += 1000.0
    job.controller.tick()
    assert not job.out.sent and job.out.result is None  # the service has the outcome


def test_an_error_that_a_replacement_would_meet_again_ends_the_job() -> None:
    job = Job(max_restarts=1).start()
    job.commit(1)
    job.from_rank(1, "give_up", reason="the optimizer cannot be protected")
    assert job.out.result == (1, "rank 1: the optimizer cannot be protected") and job.controller.state.restart == 0


def test_leaving_at_different_versions_is_an_error() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(5)
    job.from_rank(0, "leaving", epoch=0, version=5)
    job.from_rank(1, "leaving", epoch=0, version=4)
    assert job.out.result == (
        1,
        "ranks leave the training loop after different iterations: rank 0 after 5, rank 1 after 4",
    )


def test_ranks_with_different_numbers_of_batches_are_told_so_and_nobody_is_killed() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(5)
    job.from_rank(0, "leaving", epoch=0, version=5)
    for _ in range(70):
        for rank, activity in enumerate((ACTIVITY_LEAVING, ACTIVITY_COLLECTIVE)):
            job.heard(rank, "beat", count=1, free_bytes=1, progress={rank: [9, activity]})
        job.controller.tick()
        job.out.clock += 1
    assert job.out.result is not None and job.out.result[0] == 1
    assert re.search(
        r"different numbers of batches: rank 0 went through the training loop after iteration 5, and rank 1 w.*limit=",
        job.out.result[1],
    )
    assert not job.out.take("fail_worker")


def test_early_exit_with_0_is_an_error() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(2)
    job.die(1, code=0)
    assert job.out.result is not None and job.out.result[0] == 1
    assert "rank 1 exited with code 0 before training had ended on every rank" in job.out.result[1]


def test_exit_with_0_while_waiting_to_leave_is_an_error() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(2)
    job.from_rank(1, "leaving", epoch=0, version=3)
    job.die(1, code=0)
    assert job.out.result is not None and job.out.result[0] == 1


def test_a_script_that_never_trains_may_simply_end() -> None:
    job = Job(nodes=2, nproc=1)
    for rank in job.ranks:
        job.die(rank, code=0)
    assert job.out.result == (0, "")


def test_a_death_after_the_end_is_no_failover() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(5)
    leave(job, 5)
    job.die(0, code=3, tail="ValueError: while saving")
    assert job.out.result is not None and job.out.result[0] == 1
    assert "after the training loop had ended" in job.out.result[1] and "ValueError: while saving" in job.out.result[1]
    assert not job.out.take("halt")


def test_a_node_that_goes_after_its_ranks_have_ended_halts_nobody() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(5)
    leave(job, 5)
    job.die(0, code=0)
    job.controller.node_down(0, "its connection closed")
    assert job.out.result is None and not job.out.take("halt")
    job.die(1, code=0)
    assert job.out.result == (0, "")


def test_the_first_version_of_a_second_loop_is_copied_whatever_the_interval() -> None:
    job = Job(nodes=2, nproc=1, settings={"interval": 10}).start()
    job.commit(5)
    leave(job, 5)
    assert job.controller.copying.schedule.next == 6
    job.commit(6)
    assert job.controller.copying.schedule.next == 16


def test_a_second_loop_is_protected_again() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(5)
    leave(job, 5)
    job.commit(6)
    job.die(1)
    assert job.out.result is None and len(job.out.take("halt")) == 2
