"""The end of a training loop: who may leave it and when, and ends that are errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from ff_core.contract.activity import ACTIVITY_COLLECTIVE, ACTIVITY_LEAVING
from ff_core.controller.membership import Node
from tests.controller.harness import Job


def leave(job: Job, version: int, again: bool = False) -> None:
    for rank in job.ranks:
        job.from_rank(rank, "leaving", epoch=job.state.epoch, version=version, again=again)


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
    job.from_rank(1, "leaving", epoch=0, version=2, again=False)
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
    job.from_rank(0, "leaving", epoch=0, version=5, again=False)
    job.from_rank(1, "leaving", epoch=0, version=4, again=False)
    assert job.out.result == (
        1,
        "ranks leave the training loop after different iterations: rank 0 after 5, rank 1 after 4",
    )


def test_ranks_with_different_numbers_of_batches_are_told_so_and_nobody_is_killed() -> None:
    job = Job(nodes=2, nproc=1).start()
    job.commit(5)
    job.from_rank(0, "leaving", epoch=0, version=5, again=False)
    for _ in range(70):
        for rank, activity in enumerate((ACTIVITY_LEAVING, ACTIVITY_COLLECTIVE)):
            job.heard(rank, "beat", count=1, free_bytes=1, progress={rank: [9, activity, 0.0, False]})
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
    job.from_rank(1, "leaving", epoch=0, version=3, again=False)
    job.die(1, code=0)
    assert job.out.result is not None and job.out.result[0] == 1


def test_a_script_that_never_trains_may_simply_end() -> None:
    job = Job(nodes=2, nproc=1)
    for rank in job.ranks:
        job.die(rank, code=0)
    assert job.out.result == (0, "")


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


# ---- a death behind the loop ---------------------------------------------------------------------------------------


def left(**changes: Any) -> Job:
    """A job whose ranks have left their first loop with version 5."""
    job = Job(nodes=2, nproc=1, **changes).start()
    job.commit(5)
    leave(job, 5, again=True)
    job.out.sent.clear()
    return job


def test_a_death_behind_the_loop_takes_everybody_back_to_its_end() -> None:
    job = left()
    old = job.state.members.ranks[1].uid
    job.die(0)
    orders = [message["t"] for node, message in job.out.sent if node == 1]
    assert orders[:3] == ["fail_worker", "halt", "assign"], "it is killed before it could be halted"
    assert [node for node, _ in job.out.take("fail_worker")] == [1], "and who is dead already is not"
    assert [message["rank"] for _, message in job.out.take("assign")] == [0, 1]
    for name, more in (("worker_dying", {}), ("worker_exit", {"code": -9, "tail": "", "sealed": 5})):
        job.from_rank(1, name, uid=old, at=0.0, **more)  # of the process that was given up
    assert not job.out.take("halt")[2:] and not job.state.members.ranks[1].failures
    job.inventories(5)
    verdicts = [message for _, message in job.out.take("verdict")]
    assert {(m["version"], m["roles"][rank]["source"]) for m in verdicts for rank in m["roles"]} == {(5, "slot")}
    job.resume()
    job.commit(5)
    leave(job, 5, again=True)
    assert len(job.out.take("may_leave")) == 2
    for rank in job.ranks:
        job.die(rank, code=0)
    assert job.out.result == (0, "")
    assert [event["dead"] for kind, event in job.out.events if kind == "failover"] == [[0]]


def test_a_loop_whose_end_nobody_would_find_is_left_once_more() -> None:
    """Behind a `break` all do the last iteration again. So if a rank is halted before all may leave."""
    for behind in (True, False):
        job = Job(nodes=2, nproc=1).start()
        job.commit(4)
        if behind:
            job.commit(5)
            leave(job, 5)
        job.die(0, code=3, tail="ValueError: while saving")
        if not behind:
            job.from_rank(1, "left", epoch=0, version=5)
            assert not job.out.take("fail_worker"), "of an epoch that has ended"
            job.from_rank(1, "left", epoch=job.state.epoch, version=5)
        job.inventories(5)
        assert job.out.result is not None and "some rank has no older version" in job.out.result[1]
        job.out.result, job.state.finished = None, False
        job.inventories(4)
        assert {message["version"] for _, message in job.out.take("verdict")} == {4}
        assert not job.state.unfindable, "5 never was"


def test_a_death_on_the_way_back_is_a_failover_like_others() -> None:
    job = left()
    job.die(0)
    job.die(1)
    assert job.out.result is None and [m["epoch"] for _, m in job.out.take("halt")] == [1, 1, 2, 2]
    job.inventories(5)
    job.resume()
    job.commit(5)
    leave(job, 5, again=True)
    assert len(job.out.take("may_leave")) == 2


def test_a_script_that_fails_behind_the_loop_fails_twice() -> None:
    job = left()
    for _ in range(2):
        assert job.out.result is None
        job.die(0, code=1, sealed=5, tail="ValueError: while evaluating")
        if job.out.result is None:
            job.inventories(5)
            job.resume()
            job.commit(5)
            leave(job, 5, again=True)
    assert job.out.result is not None and "failed twice in iteration 6" in job.out.result[1]
    assert "ValueError: while evaluating" in job.out.result[1]


def test_a_lost_node_behind_the_loop() -> None:
    """Replicas have all that its rank had, but for replicated state."""
    job = left()
    job.controller.node_down(1, "no heartbeat")
    assert job.out.result is None and len(job.out.take("assign")) == 2
    job.inventory(0, 5)
    assert [message["version"] for _, message in job.out.take("verdict")] == [5]


def ended(job: Job) -> None:
    job.die(1, code=0)


def frozen(job: Job) -> None:
    job.state.kinds.has_constant = True


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (ended, "Some ranks' scripts had ended, too"),
        (frozen, "The model has frozen parameters, which lie in no copy"),
    ],
)
def test_where_nobody_can_go_back_the_job_says_why_or_begins_anew(happens: Callable[[Job], None], said: str) -> None:
    for restarts in (0, 1):
        job = left(max_restarts=restarts)
        happens(job)
        job.die(0, code=3, tail="ValueError: while saving")
        assert job.state.restart == restarts and not job.out.take("halt")
        text = job.out.result[1] if job.out.result else " ".join(job.out.said)
        assert f"rank 0 exited with code 3 after the training loop had ended on every rank. {said}" in text
        assert ("ValueError: while saving" in text) != bool(restarts)


def test_replicated_state_has_ranks_begin_again_where_their_slots_are() -> None:
    job = left()
    job.heard(1, "worker_started", rank=-1, uid="spare", pid=9, warm=False)
    job.heard(1, "spare_ready", uid="spare")
    job.die(0)
    assert [(node, message["uid"]) for node, message in job.out.take("assign")] == [(0, "e1-r0"), (1, "spare")]


def mark(job: Job) -> None:
    for rank in job.ranks:
        job.from_rank(rank, "marked", epoch=job.state.epoch, version=6)


@pytest.mark.parametrize("early", [False, True])
def test_a_node_that_only_holds_replicas_is_lost_behind_the_loop(early: bool) -> None:
    """Nobody is halted before all ranks wait at the next loop's begin, where no rank could get on without it."""
    job = left(settings={"replicas": 2})
    job.controller.node_up(Node(2, "m", "host2", ("127.0.0.1", 4002), 1 << 40, job.out.clock))
    for rank in job.ranks:
        job.state.members.ranks[rank].holders = [1 - rank, 2]
    if not early:
        mark(job)
    job.controller.node_down(2, "no heartbeat")
    if early:
        assert not job.out.take("halt")
        mark(job)
    assert [(node, message["dead"]) for node, message in job.out.take("halt")] == [(0, []), (1, [])]
    job.inventories(6, {0: 6, 1: 6})
    assert {message["version"] for _, message in job.out.take("verdict")} == {6}
    job.resume()
    job.commit(6)
    assert not job.state.has_left() and not job.out.take("assign")


def test_behind_the_last_loop_nobody_waits_for_such_a_node() -> None:
    job = left(settings={"replicas": 2})
    job.controller.node_up(Node(2, "m", "host2", ("127.0.0.1", 4002), 1 << 40, job.out.clock))
    job.state.members.ranks[0].holders = [1, 2]
    job.controller.node_down(2, "no heartbeat")
    for rank in job.ranks:
        job.die(rank, code=0)
    assert job.out.result == (0, "") and not job.out.take("halt")


def test_a_rank_that_was_dying_behind_the_loop_when_the_next_one_began() -> None:
    """Its commit of the mark was under way. Perhaps its exit never comes."""
    job = left()
    mark(job)
    job.heard(1, "commit", epoch=0, versions={1: 6})
    job.from_rank(1, "worker_dying", uid=job.state.members.ranks[1].uid, at=job.out.clock)
    assert not job.out.take("halt")
    job.heard(0, "commit", epoch=0, versions={0: 6})
    assert [message["dead"] for _, message in job.out.take("halt")] == [[1], [1]]
