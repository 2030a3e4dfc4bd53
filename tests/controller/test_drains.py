"""Nodes that leave in order: asked, accepted, paused for, moved, released; and what comes in between."""

from __future__ import annotations

from typing import Any

import pytest

from ff_core.controller.membership import Node
from tests.controller.harness import Job, running


def with_standby(spares: int = 2, **options: Any) -> Job:
    """Two nodes with two ranks each, W = 4, and node 2, which stands by with so many ready spares."""
    job = running(same_machine=False, **options)
    job.controller.node_up(Node(2, "m2", "host2", ("127.0.0.1", 4002), 1 << 40, job.out.clock))
    for number in range(spares):
        uid = f"n2-spare{number}"
        job.heard(2, "worker_started", rank=-1, uid=uid, pid=1, warm=False)
        job.heard(2, "spare_ready", uid=uid)
    job.out.sent.clear()
    return job


def drain(job: Job, node: int = 1) -> list[str]:
    """By hand. How it ended, when it has."""
    answers: list[str] = []
    job.controller.drain(node, answers.append)
    job.controller.tick()
    return answers


def pauses(job: Job) -> list[tuple[int, bool]]:
    """What the `w` so far have said to node 0: (version, pause)."""
    return [(message["version"], message["pause"]) for node, message in job.out.take("w") if node == 0]


def moved(job: Job, version: int) -> None:
    """The verdict, and everybody is back."""
    job.inventories(version, dict.fromkeys((0, 1), version))
    job.resume()


def test_ranks_move_behind_the_version_at_which_all_pause() -> None:
    job = with_standby()
    answers = drain(job)
    assert "node 1 is to leave (fftrain drain): ranks [2, 3] move" in job.out.said and not job.out.sent
    job.commit(5)
    assert pauses(job) == [(5, True)] and not job.out.take("halt"), "they pause behind 6"
    job.commit(6)
    assert pauses(job) == [(6, False)]
    assert [(node, message["dead"]) for node, message in job.out.take("halt")] == [(n, [2, 3]) for n in (0, 1, 2)]
    assert [(node, m["rank"], m["uid"]) for node, m in job.out.take("assign")] == [
        (2, 2, "n2-spare0"), (2, 3, "n2-spare1")
    ]  # fmt: skip
    assert [(node, message["rank"]) for node, message in job.out.take("fail_worker")] == [(1, 2), (1, 3)]
    job.inventories(6, {0: 6, 1: 6})
    verdict = dict(job.out.take("verdict"))
    assert {message["version"] for message in verdict.values()} == {6} and sorted(verdict) == [0, 1, 2]
    assert [(order["rank"], order["kind"], order["to_node"]) for order in verdict[1]["send"]] == [
        (2, "own", 2), (3, "own", 2)
    ], "of the node that leaves"  # fmt: skip
    assert verdict[1]["own"] == verdict[1]["replicas"] == {}
    assert all(1 not in [node for node, *_ in chosen] for chosen in verdict[0]["holders"].values())
    job.resume()
    assert not answers and not job.out.take("stop"), "until W it may have the only copy"
    job.commit(6)
    assert [(node, m["code"], m["drained"]) for node, m in job.out.take("stop")] == [(1, 0, True)]
    assert answers == [""] and not any(rank.failures for rank in job.state.members.ranks.values())
    job.controller.node_down(1, "its connection closed")
    assert job.state.epoch == 1 and job.out.abandoned == []


def test_what_the_old_processes_still_say_means_nothing() -> None:
    job = with_standby()
    drain(job)
    job.commit(5)
    job.commit(6)
    for rank in (2, 3):
        job.heard(1, "worker_dying", rank=rank, uid=f"s0-r{rank}", at=job.out.clock)
        job.heard(1, "worker_exit", rank=rank, uid=f"s0-r{rank}", code=-9, tail="", sealed=6, at=job.out.clock)
    job.heard(1, "beat", count=1, free_bytes=1, progress={2: [7, 0, 0.0, False]})
    assert job.state.epoch == 1 and not any(rank.failures for rank in job.state.members.ranks.values())
    assert 2 not in job.state.hangs._seen


def test_a_signal_is_answered_at_once_where_nobody_could_take_the_ranks() -> None:
    job = running(same_machine=False)
    job.heard(1, "drain", signum=15)
    ((node, message),) = job.out.take("stay")
    assert (node, message["signum"]) == (1, 15) and "no standby and no spare" in message["reason"]
    job.commit(5)
    assert pauses(job) == [(5, False)]
    job.die(2, code=-15, sealed=5)
    job.die(3, code=-15, sealed=5)
    assert not job.out.take("assign"), "it ends with its workers: nobody is to be replaced there"
    job.controller.node_down(1, "its connection closed")
    job.inventory(0, 5, {0: 5, 1: 5})
    assert job.out.result is None and "for ranks 2, 3. The job waits" in job.out.said[-1]


def test_a_signal_that_all_nodes_get_is_the_end_of_the_job_and_no_drain() -> None:
    job = with_standby()
    job.heard(1, "drain", signum=15)
    assert not job.out.take("stay")
    job.out.clock += 0.5
    job.heard(2, "drain", signum=15)
    job.out.clock += 0.6
    job.controller.tick()
    assert sorted(node for node, _ in job.out.take("stay")) == [1, 2]
    job.commit(5)
    assert pauses(job) == [(5, False)]


def test_a_node_that_got_a_signal_ends_with_torchruns_code() -> None:
    job = with_standby()
    job.heard(1, "drain", signum=10)
    job.controller.tick()
    assert not job.controller.drains.waiting[1].accepted, "perhaps all get it"
    job.out.clock += 1.1
    job.controller.tick()
    job.commit(5)
    job.commit(6)
    moved(job, 6)
    job.commit(6)
    assert [(node, message["code"]) for node, message in job.out.take("stop")] == [(1, 1)]
    assert "node 1 has left (SIGUSR1); nothing was lost" in job.out.said


def test_a_death_before_the_boundary_puts_the_drain_off() -> None:
    job = with_standby()
    answers = drain(job)
    job.commit(5)
    job.fail_over(0, 5)
    assert job.home(2) == 1, "a death is no drain: live tensors of the node may be all there is"
    job.out.take("w")
    job.commit(5)
    assert pauses(job) == [(5, True)]
    job.commit(6)
    assert job.home(2) == job.home(3) == 2 and answers == []


def test_the_standby_goes_while_ranks_pause() -> None:
    """They go on, in a new epoch: there is no other way to wake them."""
    job = with_standby()
    answers = drain(job)
    job.commit(5)
    job.controller.node_down(2, "power")
    job.controller.tick()
    assert answers == ["no standby and no spare elsewhere can take its ranks"]
    job.commit(6)
    assert [message["dead"] for _, message in job.out.take("halt")] == [[], []]
    job.inventories(6, dict.fromkeys(job.ranks, 6))
    job.resume()
    job.commit(6)
    assert job.state.settled and [job.home(rank) for rank in job.ranks] == [0, 0, 1, 1]


def test_the_node_is_lost_in_the_middle_of_it() -> None:
    job = with_standby()
    answers = drain(job)
    job.commit(5)
    job.commit(6)
    job.controller.node_down(1, "power")
    assert answers == ["node 1 is lost"] and job.state.epoch == 2
    assert job.home(2) == job.home(3) == 2
    job.own_at = {0: 0, 1: 0, 2: 9, 3: 9}
    job.inventories(6, {0: 6, 1: 6})
    assert {message["version"] for _, message in job.out.take("verdict")} == {6}


def test_the_standby_is_lost_while_it_takes_over() -> None:
    """The node that leaves gets nothing back; it stays a source."""
    job = with_standby()
    drain(job)
    job.commit(5)
    job.commit(6)
    job.inventories(6, {0: 6, 1: 6})
    job.controller.node_down(2, "power")
    job.inventories(6, {0: 6, 1: 6})
    assert job.out.result is None and "no spare and no node is left for ranks 2, 3" in job.out.said[-1]
    job.controller.node_up(Node(3, "m3", "host3", ("127.0.0.1", 4003), 1 << 40, job.out.clock))
    job.heard(3, "inventory", epoch=2, arenas=[], live={})
    assert [job.home(rank) for rank in job.ranks] == [0, 0, 3, 3] and job.out.take("verdict")


def test_the_loop_ends_before_the_boundary() -> None:
    job = with_standby()
    answers = drain(job)
    job.commit(5)
    for rank in job.ranks:
        job.from_rank(rank, "leaving", epoch=0, version=5, again=False)
    assert len(job.out.take("may_leave")) == 3
    job.controller.tick()
    assert answers == ["training is not protected now, outside of its loop"]
    job.out.take("w")
    job.commit(6)  # of another loop: ranks have read that they are to pause behind it
    assert [message["dead"] for _, message in job.out.take("halt")] == [[], [], []]


@pytest.mark.parametrize(("kind", "groups"), [("has_constant", None), ("local_bytes", [2, 3])])
def test_state_that_only_the_node_holds_stays(kind: str, groups: list[int] | None) -> None:
    job = Job(nodes=2, nproc=2, same_machine=False)
    job.controller.node_up(Node(2, "m2", "host2", ("127.0.0.1", 4002), 1 << 40, job.out.clock))
    job.own_at = {rank: job.home(rank) for rank in job.ranks}
    for rank in job.ranks:
        peers = {} if groups is None else {"peers": groups if rank in groups else [0, 1]}
        job.protect(rank, **{kind: True if kind == "has_constant" else 4096}, **peers)
    for node in (0, 1, 2):
        job.heard(node, "arenas_ready", epoch=0)
    for rank in job.ranks:
        job.from_rank(rank, "training")
    job.commit(4)
    expected = [] if groups is None else ["no rank elsewhere holds the replicated and frozen state of its ranks"]
    assert drain(job) == expected


def test_what_cannot_be_drained() -> None:
    job = with_standby()
    assert drain(job, 0) == ["node 0 has the controller: it cannot be drained"]
    assert drain(job, 7) == ["there is no node 7; there are 0, 1, 2"]
    first = drain(job)
    assert drain(job) == ["node 1 is being drained already"] and first == []


def test_a_standby_may_go_at_once() -> None:
    job = with_standby()
    assert drain(job, 2) == [""]
    assert [(node, message["code"]) for node, message in job.out.take("stop")] == [(2, 0)]
    job.controller.node_down(2, "its connection closed")
    assert job.state.epoch == 0


def test_a_standby_that_holds_replicas_is_waited_for() -> None:
    job = running(nodes=1, nproc=2, same_machine=False)
    for number in (1, 2):
        node = Node(number, f"m{number}", f"host{number}", ("127.0.0.1", 4000 + number), 1 << 40, job.out.clock)
        job.controller.node_up(node)
        if number == 1:
            job.inventories(4, {0: 4, 1: 4})
            job.resume()
            job.commit(4)
    assert job.state.members.holds(1)
    answers = drain(job)
    job.commit(5)
    job.commit(6)
    job.inventories(6, {0: 6, 1: 6})
    assert [rank.holders for rank in job.state.members.ranks.values()] == [[2], [2]] and not answers
    job.resume()
    job.commit(6)
    assert answers == [""]
