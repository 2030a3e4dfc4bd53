"""Processes that are killed: heard of when their end begins, and again when they are gone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.controller.harness import Job, running


def dying(job: Job, rank: int) -> str:
    uid = job.state.members.ranks[rank].uid
    job.from_rank(rank, "worker_dying", uid=uid, at=job.out.clock)
    return uid


def gone(job: Job, rank: int, uid: str, code: int = -9, sealed: int = 4, kernel: str = "") -> None:
    last = {"code": code, "tail": "last words", "sealed": sealed, "kernel": kernel}
    job.from_rank(rank, "worker_exit", uid=uid, **last, at=job.out.clock)


def test_a_dying_rank_is_replaced_before_it_is_gone() -> None:
    job = running()
    uid = dying(job, 2)
    assert [m["dead"] for _, m in job.out.take("halt")] == [[2], [2]]
    assert [(node, m["rank"]) for node, m in job.out.take("assign")] == [(1, 2)]
    job.inventory(0, 4, {0: 4, 1: 4})
    gone(job, 2, uid)
    assert job.state.epoch == 1, "its end is no second death"
    assert job.state.members.ranks[2].alive, "that is the newcomer"
    job.inventory(1, 4, {3: 4})
    assert job.out.take("verdict")
    job.resume()
    assert job.state.round is not None
    assert job.state.round.cause == "rank 2 was killed by signal 9"


@pytest.mark.parametrize(
    ("how", "times", "said"),
    [
        ({"code": -11}, 2, "signal 11; it failed twice in iteration 5"),
        ({"kernel": "Out of memory"}, 2, "Out of memory); it failed twice in iteration 5"),
        ({}, 4, "signal 9; it was killed 4 times in iteration 5"),  # a scheduler, an administrator, we
    ],
)
def test_a_dying_rank_counts_once_and_again_and_again_is_no_hardware_failure(
    how: dict[str, Any], times: int, said: str
) -> None:
    job = running()
    for _ in range(times):
        assert job.out.result is None
        uid = dying(job, 2)
        gone(job, 2, uid, **how)
        if job.out.result is None:
            job.inventories(4, {0: 4, 1: 4, 3: 4})
            job.resume()
    assert job.out.result is not None and said in job.out.result[1]
    assert "last words" in job.out.result[1]


def test_ending_without_a_word_and_without_an_error_is_an_error() -> None:
    job = running()
    uid = dying(job, 2)  # os._exit(0)
    gone(job, 2, uid, code=0)
    assert job.out.result is not None and "rank 2 exited with code 0 before" in job.out.result[1]


def test_dying_before_protection_waits_for_the_end() -> None:
    job = Job(nodes=2, nproc=2)
    uid = dying(job, 2)
    assert not job.out.take("halt") and job.out.result is None
    gone(job, 2, uid)
    assert job.out.result is not None and "before training was protected" in job.out.result[1]


def test_a_dying_rank_of_a_lost_node_is_not_waited_for() -> None:
    job = running(nodes=3, nproc=1)
    uid = dying(job, 1)
    (assigned,) = job.out.take("assign")
    job.controller.node_down(1, "its connection closed")
    gone(job, 1, uid)
    for node in job.state.members.live_nodes():
        job.inventory(node, 4, {node: 4})
    assert job.out.take("verdict") and assigned[1]["rank"] == 1 and job.home(1) != 1


def test_a_replacement_waits_for_the_device_of_the_dead() -> None:
    job = Job(nodes=2, nproc=2)
    for rank in job.ranks:
        job.protect(rank, on_device=True)
    for node in range(2):
        job.heard(node, "arenas_ready", epoch=0)
    for rank in job.ranks:
        job.from_rank(rank, "training")
    job.commit(4)
    dying(job, 2)
    assert job.out.take("assign")[0][1]["after_exit"] is True


def test_what_the_kernel_said_stands_in_the_record() -> None:
    job = running()
    uid = job.state.members.ranks[1].uid
    job.from_rank(1, "worker_dying", uid=uid, at=0.0)
    said = "Out of memory: Killed process 7"
    job.from_rank(1, "worker_exit", uid=uid, code=-9, tail="", sealed=4, at=0.0, kernel=said)
    assert ("worker_exit", said) in [(kind, fields.get("kernel")) for kind, fields in job.out.events]
    assert job.state.round is not None
    assert job.state.round.cause == f"rank 1 was killed by signal 9 (the kernel: {said})"
