"""Nodes beyond those that a job needs: they stand by, take a lost node's ranks, and cost nobody anything by going."""

from __future__ import annotations

from typing import Any

from ff_core.controller.membership import Node
from tests.controller.harness import Job, running


def come(job: Job, node: int, spares: int = 0) -> dict[str, dict[str, Any]]:
    """One more node, with so many ready spares; what it was sent, by name, and nobody else was."""
    before = len(job.out.sent)
    job.controller.node_up(Node(node, f"m{node}", f"host{node}", ("127.0.0.1", 4000 + node), 1 << 40, job.out.clock))
    for number in range(spares):
        uid = f"n{node}-spare{number}"
        job.heard(node, "worker_started", rank=-1, uid=uid, pid=1, warm=False)
        job.heard(node, "spare_ready", uid=uid)
    sent = job.out.sent[before:]
    assert {to for to, _ in sent} <= {node}
    return {message["t"]: message for _, message in sent}


def homes(job: Job) -> list[int]:
    return [job.home(rank) for rank in job.ranks]


def test_a_standby_gets_what_the_others_have_got() -> None:
    job = running(same_machine=False)
    job.heard(0, "preload", modules=["torch"], calls=[])
    job.out.sent.clear()
    sent = come(job, 2)
    assert list(sent) == ["start", "arenas", "preload"]
    assert (sent["start"]["ranks"], sent["start"]["standby"], sent["start"]["epoch"]) == ([], True, 0)
    assert sent["arenas"]["own"] == sent["arenas"]["replicas"] == {}
    assert sent["arenas"]["settings"] == {**job.settings, "origins": {}}
    job.out.sent.clear()
    job.heard(2, "arenas_ready", epoch=0)
    assert job.out.sent == [], "ranks have their holders already"
    assert "node 2 (host2) stands by" in job.out.said


def test_a_lost_nodes_ranks_go_to_the_standby_although_another_node_has_a_spare() -> None:
    job = running(nodes=3, nproc=2, same_machine=False)
    job.heard(0, "worker_started", rank=-1, uid="n0-spare", pid=1, warm=False)
    job.heard(0, "spare_ready", uid="n0-spare")
    come(job, 3, spares=2)
    job.controller.node_down(2, "power")
    assert homes(job) == [0, 0, 1, 1, 3, 3]
    assert [(node, message["uid"]) for node, message in job.out.take("assign")] == [
        (3, "n3-spare0"), (3, "n3-spare1")
    ]  # fmt: skip
    job.inventories(4, {0: 4, 1: 4, 2: 4, 3: 4})
    holders = {rank: job.state.members.ranks[rank].holders for rank in job.ranks}
    assert all(nodes and set(nodes) <= {0, 1, 3} for nodes in holders.values())


def test_a_standby_whose_processes_are_not_there_yet_starts_some() -> None:
    job = running(same_machine=False)
    come(job, 2)
    job.controller.node_down(1, "power")
    assert homes(job) == [0, 0, 2, 2] and job.out.result is None
    assert [message["uid"] for _, message in job.out.take("assign")] == ["e1-r2", "e1-r3"]


def test_a_standby_is_left_alone_while_the_dead_ranks_node_lives() -> None:
    job = running(same_machine=False)
    come(job, 2, spares=2)
    job.die(3)
    assert homes(job) == [0, 0, 1, 1]


def test_a_standby_holds_nothing_and_its_loss_halts_nobody() -> None:
    job = running(same_machine=False)
    come(job, 2)
    job.out.sent.clear()
    job.controller.node_down(2, "power")
    assert job.state.epoch == 0 and [message["t"] for _, message in job.out.sent] == ["stop"]
    assert job.out.result is None


def test_a_standby_that_goes_in_a_failover_is_not_waited_for() -> None:
    job = running(same_machine=False)
    come(job, 2)
    job.die(3)
    job.controller.node_down(2, "power")
    assert job.state.epoch == 2 and {node for node, message in job.out.take("halt") if message["epoch"] == 2} == {0, 1}


def test_who_comes_in_a_halt_is_halted_and_takes_what_has_no_place() -> None:
    job = running(same_machine=False)
    job.controller.node_down(1, "power")
    sent = come(job, 2)
    assert list(sent) == ["start", "arenas", "halt", "assign"]
    assert sent["start"]["epoch"] == 0 and sent["halt"]["epoch"] == 1, "nothing may connect to it before the verdict"
    job.inventories(4, {0: 4, 1: 4})
    assert homes(job) == [0, 0, 2, 2] and job.out.result is None


def test_one_node_and_a_standby_are_protected_against_the_loss_of_one() -> None:
    """Where too few nodes play ranks a standby holds replicas; whoever comes late makes them begin anew for that."""
    job = running(nodes=1, nproc=2, same_machine=False)
    assert "NOT of a node" in job.state.coverage
    job.controller.node_up(Node(1, "m1", "host1", ("127.0.0.1", 4001), 1 << 40, job.out.clock))
    assert job.state.epoch == 1
    job.inventories(4, {0: 4, 1: 4})
    assert [rank.holders for rank in job.state.members.ranks.values()] == [[1], [1]]
    assert job.state.coverage == "protected against the loss of 1 node at a time"
    job.resume()
    assert job.state.epoch == 1
    job.controller.node_down(1, "power")
    assert job.state.epoch == 2, "its replicas are gone"


def test_who_comes_before_training_has_started_holds_replicas_then() -> None:
    job = Job(nodes=1, nproc=2, same_machine=False)
    for rank in job.ranks:
        job.protect(rank)
    come(job, 1)
    for node in (0, 1):
        job.heard(node, "arenas_ready", epoch=0)
    job.from_rank(0, "training")
    assert job.state.epoch == 0 and job.state.lacks_holders()
    job.from_rank(1, "training")
    assert job.state.epoch == 1 and job.state.round is not None and not job.state.round.dead


def test_who_comes_behind_a_verdict_holds_replicas_when_all_train_again() -> None:
    job = running(nodes=1, nproc=2, same_machine=False)
    job.die(1)
    job.inventories(4, {0: 4})
    come(job, 1)
    assert job.state.epoch == 1 and job.state.lacks_holders()
    job.resume()
    assert job.state.epoch == 2 and job.state.round is not None and not job.state.round.dead
    job.inventories(4, {0: 4, 1: 4})
    assert [rank.holders for rank in job.state.members.ranks.values()] == [[1], [1]]


def test_who_comes_behind_a_loop_holds_replicas_when_the_next_one_has_begun() -> None:
    job = running(nodes=1, nproc=1, version=4)
    job.from_rank(0, "leaving", epoch=0, version=4, again=True)
    come(job, 1)
    assert not job.out.take("halt"), "nobody may be halted behind a loop"
    job.commit(5)
    assert [message["epoch"] for _, message in job.out.take("halt")] == [1, 1]


def test_a_standby_that_goes_during_start_up_is_not_waited_for() -> None:
    job = Job(nodes=2, nproc=1, same_machine=False)
    come(job, 2)
    for rank in job.ranks:
        job.protect(rank)
    for node in (0, 1):
        job.heard(node, "arenas_ready", epoch=0)
    assert not job.out.take("placement")
    job.controller.node_down(2, "power")
    assert [node for node, _ in job.out.take("placement")] == [0, 1]


def test_a_restart_takes_the_standby_in_the_place_of_a_lost_node() -> None:
    job = Job(nodes=2, nproc=1, same_machine=False, max_restarts=1)
    come(job, 2)
    job.out.sent.clear()
    job.controller.node_down(1, "power")
    starts = dict(job.out.take("start"))
    assert {node: message["ranks"] for node, message in starts.items()} == {0: [[0, "s1-r0"]], 2: [[1, "s1-r1"]]}
    assert not any(message["standby"] for message in starts.values())
