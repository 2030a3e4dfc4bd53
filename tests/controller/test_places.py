"""Ranks for which no spare and no node is left: the job waits for one, and ends when its time is over."""

from __future__ import annotations

from ff_core.contract.job import NO_PLACE_CODE
from ff_core.controller.membership import Node
from tests.controller.harness import Job, running


def test_nowhere_to_put_a_rank() -> None:
    job = running(nodes=2, nproc=1, same_machine=False)
    job.controller.node_down(1, "its connection closed")
    job.inventories(4, {0: 4})
    assert job.out.result is None
    (said,) = [text for text in job.out.said if "no spare" in text]
    assert "no spare and no node is left for rank 1. The job waits up to 600 s (place_timeout_s)" in said
    assert "start the same command on one, with --standby" in said and "after iteration 4" in said
    assert [fields for kind, fields in job.out.events if kind == "waiting"] == [
        {"ranks": [1], "timeout_s": 600.0, "version": 4}
    ]
    for clock, reminders in ((1030, 0), (1061, 1), (1599, 2)):
        beat(job, clock)
        assert job.out.result is None
        assert sum("still waiting for a node that takes rank 1" in text for text in job.out.said) == reminders
    beat(job, 1601)
    assert job.out.result is not None and job.out.result[0] == NO_PLACE_CODE == 69
    assert "no spare and no node is left for rank 1, and none came within 600 s" in job.out.result[1]
    assert "no checkpoint was persisted" in job.out.result[1]


def beat(job: Job, clock: float) -> None:
    """It is `clock`, and all nodes that are not lost live."""
    job.out.clock = clock
    for node in job.state.members.live_nodes():
        job.heard(node, "beat", count=1, free_bytes=1, progress={})
    job.controller.tick()


def test_not_to_wait_for_a_place() -> None:
    job = running(nodes=2, nproc=1, same_machine=False, settings={"place_timeout_s": 0})
    job.controller.node_down(1, "its connection closed")
    job.inventories(4, {0: 4})
    assert job.out.result is not None and job.out.result[0] == NO_PLACE_CODE


def test_a_node_that_comes_while_it_is_waited_for_gets_the_ranks() -> None:
    job = running(nodes=2, nproc=2, same_machine=False)
    job.heard(0, "preload", modules=["torch"], calls=[])
    job.controller.node_down(1, "power")
    job.inventory(0, 4, {0: 4, 1: 4})
    beat(job, 1500)
    job.out.sent.clear()
    job.controller.node_up(Node(2, "m2", "host2", ("127.0.0.1", 4002), 1 << 40, job.out.clock))
    assert [(node, message["t"]) for node, message in job.out.sent] == [
        (2, name) for name in ("start", "arenas", "halt", "assign", "assign", "preload")
    ]
    beat(job, 1700)
    assert job.out.result is None and not job.out.take("verdict"), "its answer is all that is missing"
    job.heard(2, "inventory", epoch=1, arenas=[], live={})
    assert {node: message["version"] for node, message in job.out.take("verdict")} == {0: 4, 2: 4}
    job.resume()
    assert [job.home(rank) for rank in job.ranks] == [0, 0, 2, 2]
    job.controller.node_down(2, "power")
    job.inventory(0, 4, {0: 4, 1: 4})
    beat(job, 2200)
    assert job.out.result is None, "the next wait has its own time"


def test_half_of_what_is_waited_for_is_not_enough_and_the_time_goes_on() -> None:
    job = running(nodes=3, nproc=1, same_machine=False, settings={"replicas": 2})
    job.controller.node_down(1, "power")
    job.inventory(0, 4, {0: 4})
    job.controller.node_down(2, "power")
    job.inventory(0, 4, {0: 4})
    assert job.out.result is None
    job.out.clock = 1400
    job.controller.node_up(Node(3, "m3", "host3", ("127.0.0.1", 4003), 1 << 40, job.out.clock))
    job.heard(3, "inventory", epoch=2, arenas=[], live={})
    assert [job.home(rank) for rank in job.ranks] == [0, 3, 2] and not job.out.take("verdict")
    beat(job, 1601)
    assert job.out.result is not None and "no node is left for rank 2, and" in job.out.result[1]


def test_a_spare_that_follows_one_that_was_taken_takes_a_rank_that_waits() -> None:
    job = running(nodes=2, nproc=2, same_machine=False, settings={"spares": 1})
    job.heard(0, "worker_started", rank=-1, uid="n0-spare1", pid=5, warm=False)
    job.controller.node_down(1, "power")
    job.inventory(0, 4, {0: 4, 1: 4})
    assert [message["uid"] for _, message in job.out.take("assign")] == ["n0-spare1"] and job.out.result is None
    job.heard(0, "worker_started", rank=-1, uid="n0-spare2", pid=6, warm=False)
    assert [message["uid"] for _, message in job.out.take("assign")] == ["n0-spare2"]
    assert len(job.out.take("verdict")) == 1
