"""Before a rank is killed for keeping the others, everybody learns where all of them were."""

from __future__ import annotations

from typing import Any

import pytest

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_USER
from tests.controller.harness import Job


def stalled(seconds: float = 40.0, stopped: bool = False) -> Job:
    """Rank 1 of two nodes makes no progress, the other waits."""
    job = Job(nodes=2, nproc=1, settings={"hang_timeout_s": 30.0, "heartbeat_timeout_s": 8.0}).start()
    job.commit(5)
    beats(job, seconds, stopped=stopped)
    return job


def beats(job: Job, seconds: float, count: int = 9, stopped: bool = False) -> None:
    for _ in range(int(seconds)):
        for rank, activity in enumerate((ACTIVITY_COLLECTIVE, ACTIVITY_USER)):
            progress = [count + 1 - rank, activity, 0.0, stopped and rank == 1]
            job.heard(rank, "beat", count=1, free_bytes=1, progress={rank: progress})
        job.controller.tick()
        if job.out.sent and any(message["t"] == "look" for _, message in job.out.sent):
            return
        job.out.clock += 1


def asked(job: Job, let_go: tuple[int, ...] = ()) -> int:
    looks = job.out.take("look")
    assert [(node, message["let_go"]) for node, message in looks] == [(0, [*let_go]), (1, [*let_go])]
    assert not job.out.take("fail_worker")
    number: int = looks[0][1]["id"]
    return number


def hangs(job: Job) -> list[dict[str, Any]]:
    return [fields for kind, fields in job.out.events if kind == "hang"]


def test_the_stacks_of_all_ranks_are_in_the_record_before_it_is_killed() -> None:
    job = stalled()
    number = asked(job)
    job.heard(0, "stacks", id=number, ranks={0: "in wait()"})
    job.controller.tick()
    assert not hangs(job) and not job.out.take("fail_worker")
    job.heard(1, "stacks", id=number, ranks={1: "in acquire()"})
    job.controller.tick()
    ((node, message),) = job.out.take("fail_worker")
    assert (node, message["rank"]) == (1, 1) and "hang_timeout_s" in message["reason"]
    (event,) = hangs(job)
    assert event["rank"] == 1 and event["stacks"] == [[[0], "in wait()"], [[1], "in acquire()"]]


def test_ranks_at_the_same_place_are_told_of_together() -> None:
    job = stalled()
    number = asked(job)
    for rank in (0, 1):
        job.heard(rank, "stacks", id=number, ranks={rank: "in wait()"})
    job.controller.tick()
    assert hangs(job)[0]["stacks"] == [[[0, 1], "in wait()"]]


def test_a_node_that_does_not_answer_is_not_waited_for() -> None:
    job = stalled()
    job.heard(0, "stacks", id=asked(job), ranks={0: "in wait()"})
    for _ in range(4):
        job.controller.tick()
        job.out.clock += 1
    assert [event["stacks"] for event in hangs(job)] == [[[[0], "in wait()"]]]
    assert len(job.out.take("fail_worker")) == 1


def test_who_gets_on_meanwhile_is_not_killed() -> None:
    job = stalled()
    number = asked(job)
    beats(job, 1, count=10)
    for rank in (0, 1):
        job.heard(rank, "stacks", id=number, ranks={rank: "in wait()"})
    beats(job, 20, count=10)
    assert not hangs(job) and not job.out.take("fail_worker")
    beats(job, 20, count=10)
    assert asked(job) != number


def test_a_stopped_process_is_killed_though_it_goes_on_to_answer() -> None:
    job = stalled(stopped=True)
    number = asked(job, let_go=(1,))
    beats(job, 1, count=10)
    for rank in (0, 1):
        job.heard(rank, "stacks", id=number, ranks={rank: "in wait()"})
    job.controller.tick()
    assert [event["rank"] for event in hangs(job)] == [1] and len(job.out.take("fail_worker")) == 1


@pytest.mark.parametrize("late", [False, True])
def test_a_failover_meanwhile_begins_anew(late: bool) -> None:
    """late: the answers come behind it."""
    job = stalled()
    number = asked(job)
    job.fail_over(0, 5)
    job.out.take("fail_worker")
    for rank in (0, 1):
        job.heard(rank, "stacks", id=number, ranks={rank: "in wait()"})
    job.controller.tick()
    assert not hangs(job) and not job.out.take("fail_worker")
