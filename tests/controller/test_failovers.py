"""Deaths while training is protected: epochs, verdicts, who counts as what, and when the job gives up."""

from __future__ import annotations

import pytest

from tests.controller.harness import running


def test_one_death_from_halt_to_resume() -> None:
    job = running()
    job.die(2, sealed=4)
    assert [(node, message["epoch"], message["dead"]) for node, message in job.out.take("halt")] == [
        (0, 1, [2]),
        (1, 1, [2]),
    ]
    job.inventory(0, 4, {0: 4, 1: 4})
    assert not job.out.take("verdict"), "every agent has to be heard"
    job.inventory(1, 4, {3: 4})
    verdicts = dict(job.out.take("verdict"))
    assert {(m["epoch"], m["old_epoch"], m["version"], m["source_rank"]) for m in verdicts.values()} == {(1, 0, 4, 0)}
    assert [(node, m["rank"], m["uid"], m["epoch"]) for node, m in job.out.take("assign")] == [(1, 2, "e1-r2", 1)]
    assert verdicts[0]["newcomers"] == [2] and verdicts[0]["restored"] == [2]
    assert {node: sorted(m["roles"]) for node, m in verdicts.items()} == {0: [0, 1], 1: [2, 3]}
    assert verdicts[1]["roles"][2] == {"source": "slot", "full": True, "filled": False}
    assert verdicts[1]["roles"][3]["source"] == "live"
    for rank in job.ranks:
        assert not job.out.take("regroup")
        job.from_rank(rank, "ready", epoch=1, restored_bytes=1, at=0.0)
    assert len(job.out.take("regroup")) == 2
    job.commit(4)
    assert not job.out.take("w"), "nobody's commit counts before all have resumed"
    for rank in job.ranks:
        job.from_rank(rank, "resumed", epoch=1, timings={})
    assert [(m["epoch"], m["version"]) for _, m in job.out.take("w")] == [(1, 4), (1, 4)]
    for rank in job.ranks:
        job.from_rank(rank, "redone", epoch=1, version=5, at=1000.5)
    kinds = [kind for kind, _ in job.out.events]
    assert kinds.count("failover") == 1
    event = dict(job.out.events)["failover"]
    assert event["dead"] == [2] and event["v_star"] == 4 and event["newcomers"] == [2]
    assert set(event["phases"]) == {"detect", "halt", "verdict", "join", "regroup", "restore", "resume"}


def test_the_newcomers_live_tensors_mean_nothing_until_it_has_resumed() -> None:
    job = running(nodes=2, nproc=1)
    job.die(1, sealed=4)
    job.inventories(4, {0: 4})
    job.die(0, sealed=4)  # while rank 1 joins
    assert job.state.epoch == 2
    job.inventories(4, {1: 4})
    node, verdict = job.out.take("verdict")[-1]
    assert node == 1 and verdict["roles"][1]["source"] == "slot" and verdict["source_rank"] is None
    assert verdict["newcomers"] == [0, 1] and verdict["restored"] == [0, 1]


def test_a_death_while_halting_keeps_the_epoch_whose_slots_count() -> None:
    job = running()
    job.die(0, sealed=4)
    job.inventory(0, 4, {1: 4})
    job.die(3, sealed=4)
    assert [m["epoch"] for _, m in job.out.take("halt")] == [1, 1, 2, 2]
    job.inventory(1, 4, {2: 4}, epoch=0)
    assert not job.out.take("verdict")
    job.inventory(0, 4, {1: 4})
    message = job.out.take("verdict")[0][1]
    assert (message["epoch"], message["old_epoch"], message["version"]) == (2, 0, 4)
    assert message["newcomers"] == [0, 3]


def test_a_death_while_joining_starts_over_from_the_restamped_slots() -> None:
    job = running()
    job.die(0, sealed=4)
    job.inventories(4, {1: 4, 2: 4, 3: 4})
    job.out.take("verdict")
    job.die(3, sealed=4)
    job.inventories(4, {1: 4, 2: 4})
    message = job.out.take("verdict")[0][1]
    assert (message["epoch"], message["old_epoch"]) == (2, 1)
    assert [m["rank"] for _, m in job.out.take("assign")] == [0, 3], "rank 0 has its replacement already"


def test_inventories_of_another_round_are_dropped() -> None:
    job = running()
    job.die(0, sealed=4)
    job.die(1, sealed=4)
    for node in range(2):
        job.heard(node, "inventory", epoch=1, arenas=[], live={})
    assert not job.out.take("verdict") and job.out.result is None


def test_a_spare_at_home_comes_first_then_elsewhere_then_a_cold_start() -> None:
    job = running(settings={"spares": 1})
    job.heard(0, "worker_started", rank=-1, uid="n0-spare1", pid=5, warm=False)
    job.heard(1, "worker_started", rank=-1, uid="n1-spare1", pid=5, warm=False)
    job.heard(0, "spare_ready", uid="n0-spare1")
    job.heard(1, "spare_ready", uid="n1-spare1")
    for uid, node in (("n1-spare1", 1), ("n0-spare1", 0), (None, 0)):
        rank = 3
        job.fail_over(rank, job.controller.failovers.best + 5)
        ((at, entry),) = job.out.take("assign")
        assert at == node and entry["rank"] == rank and entry["uid"] == (uid or f"e{job.state.epoch}-r{rank}")
        assert job.home(rank) == node
        job.commit(job.controller.failovers.best)
    # what lies elsewhere is sent
    assert not job.out.result


def test_a_lost_spare_is_not_counted_on() -> None:
    job = running()
    job.heard(1, "worker_started", rank=-1, uid="n1-spare1", pid=5, warm=False)
    job.heard(1, "spare_ready", uid="n1-spare1")
    job.heard(1, "spare_gone", uid="n1-spare1")
    job.fail_over(2, 4)
    assert job.out.take("assign")[0][1]["uid"] == "e1-r2"


def test_node_loss_moves_ranks_and_does_not_count_against_them() -> None:
    job = running(nodes=3, nproc=1)
    job.controller.node_down(1, "its connection closed")
    assert [node for node, _ in job.out.take("halt")] == [0, 2]
    assert not any(rank.failures for rank in job.state.members.ranks.values())
    job.inventories(4, {0: 4, 2: 4})
    verdicts = dict(job.out.take("verdict"))
    home = job.home(1)
    assert home != 1 and [(node, m["rank"]) for node, m in job.out.take("assign")] == [(home, 1)]
    (order,) = [order for message in verdicts.values() for order in message["send"]]
    assert order["rank"] == 1 and order["kind"] == "replica" and order["from"] == 2 and order["to_node"] == home
    assert all(1 not in [node for node, *_ in chosen] for chosen in verdicts[0]["holders"].values())
    assert job.out.take("stop")[0][0] == 1, "a node that only fell silent must not go on"


def test_what_a_lost_node_still_says_is_ignored() -> None:
    job = running(nodes=3, nproc=1)
    job.controller.node_down(1, "no heartbeat")
    epoch, uid = job.state.epoch, job.state.members.ranks[1].uid
    job.heard(1, "worker_exit", rank=1, uid=uid, code=-9, tail="", sealed=4, at=0.0)
    job.heard(1, "inventory", epoch=epoch, arenas=[[1, 1, "own", 0, 9, True]], live={1: 9})
    job.heard(1, "worker_exit", rank=1, uid=uid, code=0, tail="", sealed=4, at=0.0)
    assert job.state.epoch == epoch and job.out.result is None
    assert not job.state.members.ranks[1].failures
    assert job.state.round is not None and 1 not in job.state.round.inventories


def test_a_node_without_ranks_forces_a_new_epoch_because_its_replicas_are_gone() -> None:
    job = running(nodes=3, nproc=1)
    job.state.members.ranks[1].node = 0
    job.controller.node_down(1, "its connection closed")
    assert [m["dead"] for _, m in job.out.take("halt")] == [[], []]


def test_the_last_node() -> None:
    job = running(nodes=2, nproc=1)
    job.controller.node_down(0, "gone")
    job.controller.node_down(1, "gone too")
    assert job.out.result is not None and "no node is left" in job.out.result[1]


def test_twice_in_the_same_iteration_ends_the_job_with_its_last_words() -> None:
    job = running()
    job.fail_over(2, 4, code=1)
    job.commit(4)
    job.die(2, code=1, sealed=4, tail="File train.py\nValueError: bad batch")
    assert job.out.result is not None and job.out.result[0] == 1
    text = job.out.result[1]
    assert "rank 2 exited with code 1; it failed twice in iteration 5" in text
    assert text.endswith("ValueError: bad batch")


def test_different_ranks_or_iterations_are_hardware() -> None:
    job = running()
    for step, rank in enumerate((2, 1, 2, 0, 2)):
        job.fail_over(rank, 4 + step)
        job.commit(4 + step)
        assert job.out.result is None
    assert job.state.epoch == 5


def test_no_progress_over_many_failovers_ends_the_job() -> None:
    job = running(nodes=2, nproc=8)
    for rank in range(12):
        if job.out.result is not None:
            break
        job.fail_over(rank, 4)
    assert job.out.result is not None and "did not get past iteration 4" in job.out.result[1]


def test_unrecoverable_names_what_is_lost_and_what_is_left() -> None:
    job = running(nodes=2, nproc=1)
    job.from_rank(0, "persisted", path="/ckpt/step3", version=3)
    job.die(1, sealed=4)
    job.heard(0, "inventory", epoch=1, arenas=[[0, 0, "own", 0, 4, True]], live={0: 4})
    job.heard(1, "inventory", epoch=1, arenas=[], live={})
    assert job.out.result is not None and job.out.result[0] == 1
    text = job.out.result[1]
    assert text.startswith("unrecoverable: rank 1 was killed by signal 9")
    assert "rank 0 can supply [4]" in text and "rank 1 can supply nothing" in text
    assert "the newest persisted checkpoint is /ckpt/step3 (iteration 3)" in text


def test_unrecoverable_restarts_when_allowed() -> None:
    job = running(nodes=2, nproc=1, max_restarts=1)
    job.die(1, sealed=4)
    for node in range(2):
        job.heard(node, "inventory", epoch=1, arenas=[], live={})
    assert job.out.result is None and len(job.out.take("start")) == 2
    assert job.state.epoch == 2 and not job.state.is_protecting


def test_a_bad_slot_starts_over() -> None:
    job = running()
    job.die(2, sealed=4)
    job.inventories(4, {0: 4, 1: 4, 3: 4})
    job.heard(1, "bad_slot", rank=2, epoch=0, reason="old news")
    assert job.state.epoch == 1
    job.heard(1, "bad_slot", rank=2, epoch=1, reason="chunk 3 does not match")
    assert job.state.epoch == 2 and "rank 2: chunk 3 does not match; looking for another copy" in job.out.said
    assert job.state.round is not None and job.state.round.old_epoch == 1
    assert job.state.round.cause == "rank 2 was killed by signal 9, then a copy of rank 2 on node 1 was damaged"


def test_a_silent_node_is_lost_after_the_timeout() -> None:
    job = running(nodes=2, nproc=1)
    timeout = job.state.config.heartbeat_timeout_s
    job.out.clock += timeout * 0.9
    job.heard(0, "beat", count=1, free_bytes=1, progress={})
    job.controller.tick()
    assert job.state.epoch == 0
    job.out.clock += timeout * 0.2
    job.controller.tick()
    assert job.state.epoch == 1 and job.state.members.live_nodes() == [0]


def test_ranks_that_do_not_join_in_time_are_killed() -> None:
    job = running(nodes=2, nproc=1)
    job.die(1, sealed=4)
    job.inventories(4, {0: 4})
    job.from_rank(0, "ready", epoch=1, restored_bytes=0, at=0.0)
    job.out.clock += job.state.config.join_timeout_s + 1
    for node in range(2):
        job.heard(node, "beat", count=1, free_bytes=1, progress={})
    job.controller.tick()
    assert [(node, m["rank"]) for node, m in job.out.take("fail_worker")] == [(1, 1)]


def test_regrouping_that_takes_too_long_starts_over() -> None:
    job = running(nodes=2, nproc=1)
    job.die(1, sealed=4)
    job.inventories(4, {0: 4})
    for rank in job.ranks:
        job.from_rank(rank, "ready", epoch=1, restored_bytes=0, at=0.0)
    job.from_rank(0, "resumed", epoch=1, timings={})
    job.out.take("halt")
    job.out.clock += job.state.config.regroup_timeout_s + 1
    for node in range(2):
        job.heard(node, "beat", count=1, free_bytes=1, progress={})
    job.controller.tick()
    assert [m["epoch"] for _, m in job.out.take("halt")] == [2, 2]
    assert job.state.round is not None
    assert "ranks [1] did not resume within 60 s (regroup_timeout_s)" in job.state.round.cause


@pytest.mark.parametrize("name", ["ready", "resumed", "redone", "leaving"])
def test_messages_of_another_epoch_change_nothing(name: str) -> None:
    job = running()
    job.die(2, sealed=4)
    job.inventories(4, {0: 4, 1: 4, 3: 4})
    extra = {
        "ready": {"restored_bytes": 1, "at": 0.0},
        "resumed": {"timings": {}},
        "redone": {"version": 5, "at": 0.0},
        "leaving": {"version": 5, "again": True},
    }[name]
    before = repr(job.state.round) + repr(job.state.members.ranks)
    for rank in job.ranks:
        job.from_rank(rank, name, epoch=0, **extra)
    assert repr(job.state.round) + repr(job.state.members.ranks) == before
    assert not job.out.take("regroup") and not job.out.take("may_leave")


def test_the_interrupted_iteration_was_the_last() -> None:
    job = running(nodes=2, nproc=1)
    job.from_rank(0, "leaving", epoch=0, version=5, again=False)
    job.fail_over(1, 5)
    for rank in job.ranks:
        job.from_rank(rank, "leaving", epoch=1, version=5, again=False)
    assert not job.out.take("may_leave")
    job.commit(5)
    assert len(job.out.take("may_leave")) == 2
    assert [kind for kind, _ in job.out.events].count("failover") == 1
