"""A controller that takes over: what the one before has told, who must have joined, and what it says first."""

from __future__ import annotations

from typing import Any

from ff_core.contract.messages import AGENT_TO_CONTROLLER, make, pack, unpack
from ff_core.contract.persisted import Found
from ff_core.controller.election import Election, Joined
from ff_core.controller.membership import Node
from ff_core.controller.record import Record
from ff_core.controller.takeover import Takeover
from tests.controller.harness import Job, Recorder, running


def with_deputies(job: Job) -> Job:
    """Every node has a launcher that listens, as on hosts."""
    for node in job.state.members.nodes.values():
        node.deputy = (f"host{node.id}", 100 + node.id)
    return job


def trains(nodes: int = 3, nproc: int = 1, **options: Any) -> Job:
    job = with_deputies(running(nodes, nproc, same_machine=False, **options))
    job.controller.succession.look(nodes=True)
    return job


def newest(job: Job, node: int = 1) -> tuple[int, dict[str, Any]]:
    told = [message for to, message in job.out.sent if to == node and message["t"] == "record"]
    return told[-1]["number"], told[-1]["content"]


def joins(job: Job, node: int, **changes: Any) -> Joined:
    """What the agent of `node` says, as it travels."""
    number, record = newest(job, node)
    epoch = job.state.epoch
    ranks = [[rank.rank, rank.uid, 0, True] for rank in job.state.members.on_node(node)]
    said = {"term": 1, "number": number, "record": record, "epoch": epoch, "halt_epoch": -1, "verdict": [0, epoch, -1]}
    said |= {"heard": True, "silent": [], "ranks": ranks, "spares": {}, **changes}
    hello = {"node": node, "host_id": f"m{node}", "hostname": "", "data_host": "", "data_port": 0, "free_bytes": 0}
    message = make(AGENT_TO_CONTROLLER, "hello", proof=b"", nonce=b"", pid=0, joins=said, **hello)
    known = Node(node, f"m{node}", f"host{node}", ("127.0.0.1", 4000 + node), 1 << 40, 0.0, (f"host{node}", 100 + node))
    return Joined.of(known, unpack(AGENT_TO_CONTROLLER, pack(message))["joins"])


def taken_over(*joined: Joined) -> tuple[Takeover, Recorder]:
    out, home = Recorder(), min(one.node.id for one in joined)
    record = max(joined, key=lambda one: one.number).record
    by_node = {one.node.id: one for one in joined}
    takeover = Takeover(out, lambda job, directory: Found(), by_node, record, 990.0, home, {0})
    takeover.begin()
    return takeover, out


# ---- the record --------------------------------------------------------------------------------------------------


def test_agents_get_a_record_when_a_death_is_a_failover() -> None:
    job = with_deputies(Job(2, 1))
    assert not job.out.take("record"), "nothing is protected"
    job.start()
    assert [node for node, _ in job.out.take("record")] == [0, 1]
    job.commit(4)
    assert not job.out.take("record"), "nothing that a successor would have to know"
    for rank in job.ranks:
        job.from_rank(rank, "leaving", epoch=0, version=4, again=False)
    assert job.out.take("may_leave") and [m["content"] for _, m in job.out.take("record")] == [{}, {}]
    job.commit(5)
    assert [node for node, _ in job.out.take("record")] == [0, 1], "another loop"


def test_a_record_says_all_that_nobody_else_knows() -> None:
    job = trains()
    state = job.state
    state.kinds.groups = {frozenset({0, 1}), frozenset({2})}
    state.kinds.frozen, state.kinds.has_constant = {2}, True
    state.members.ranks[1].failures = {7: [0, 1]}
    job.from_rank(0, "persisted", path="there", version=3)
    job.heard(0, "preload", modules=["torch"], calls=[])
    number, content = newest(job)
    record = Record.from_wire(content)
    assert number == job.controller.succession.number
    assert record == Record.of(state, job.controller.preload)
    assert record.places == {0: ["host0", 100], 1: ["host1", 101], 2: ["host2", 102]}
    takeover, _ = taken_over(joins(job, 1), joins(job, 2))
    after = takeover.controller.state
    assert after.kinds == state.kinds and after.last_checkpoint == ("there", 3)
    assert after.members.ranks[1].failures == {7: [0, 1]}
    assert [rank.layout for rank in after.members.ranks.values()] == [r.layout for r in state.members.ranks.values()]
    assert takeover.controller.preload == job.controller.preload
    assert after.config == state.config and after.settings == state.settings


def test_who_is_lost_is_in_no_record() -> None:
    job = trains()
    job.controller.node_down(2, "its connection closed")
    _, content = newest(job)
    assert sorted(content["places"]) == [0, 1] and sorted(content["machines"]) == [0, 1, 2]


def test_one_launcher_with_all_nodes_tells_nobody() -> None:
    job = running(2, 2)
    job.controller.succession.look(nodes=True)
    assert not job.out.take("record")


def test_nobody_takes_over_where_a_launcher_cannot_be_proven_dead() -> None:
    """Node 0 behind an address that is not its own."""
    job = with_deputies(running(3, 1))
    job.state.members.nodes[0].deputy = None
    job.controller.succession.look(nodes=True)
    assert not job.out.take("record")


def test_heartbeats_are_answered() -> None:
    job = running()
    job.heard(1, "beat", count=17, free_bytes=1, progress={})
    assert job.out.take("heard") == [(1, {"t": "heard", "count": 17})]


# ---- who must have joined ----------------------------------------------------------------------------------------


def test_all_who_live_must_have_joined() -> None:
    job, election = trains(), Election()
    assert not election.is_complete() and election.missing() == {} and election.outsiders() == []
    assert election.join(joins(job, 1)) == ""
    assert election.missing() == {0: ("host0", 100), 2: ("host2", 102)}
    election.dead.add(0)
    assert not election.is_complete(), "node 2 may live, and may have joined another one"
    assert election.join(joins(job, 1)) == "node 1 has joined already"
    election.join(joins(job, 2))
    assert election.is_complete()
    election.leave(2)
    assert not election.is_complete()
    election.dead.add(2)
    assert election.is_complete()


def test_who_was_given_up_is_turned_away() -> None:
    """Its own record is older, and does not say so."""
    job, election = trains(4), Election()
    old = joins(job, 3)
    election.join(old)
    job.controller.node_down(3, "no heartbeat")
    election.join(joins(job, 1))
    assert election.outsiders() == [3] and sorted(election.missing()) == [0, 2]


# ---- the first halt ----------------------------------------------------------------------------------------------


def test_it_begins_with_a_failover_in_a_term_of_its_own() -> None:
    job = trains(3, 1)
    job.fail_over(1, 4)
    assert job.state.epoch == 1
    takeover, out = taken_over(joins(job, 1), joins(job, 2))
    assert [message["t"] for node, message in out.sent if node == 1][:2] == ["record", "halt"], "the record comes first"
    halts = out.take("halt")
    assert [(node, message["epoch"], message["dead"]) for node, message in halts] == [(1, 1024, [0]), (2, 1024, [0])]
    state = takeover.controller.state
    assert state.round is not None and state.round.cause == "node 0 lost, with the controller"
    assert state.round.attempts == 1 and state.round.died_at == 990.0
    assert state.home == 1 and state.round is not None and state.round.old_epoch == 1
    assert state.members.live_nodes() == [1, 2] and not state.members.nodes[0].alive
    assert ("node_lost", {"node": 0, "reason": "its launcher is gone", "ranks": [0]}) in out.events
    assert ("takeover", {"node": 1, "lost": [0], "epoch": 1024}) in out.events
    (_, record), *_ = out.take("record")
    assert sorted(record["content"]["places"]) == [1, 2] and record["number"] > newest(job)[0]


def test_every_term_begins_above_all_that_was_heard() -> None:
    job = trains()
    takeover, _ = taken_over(joins(job, 1, epoch=3, halt_epoch=1024), joins(job, 2, epoch=1023))
    assert takeover.controller.state.epoch == 2048


def test_a_verdict_that_has_reached_one_agent_holds_for_all() -> None:
    job = trains()
    one = joins(job, 1, epoch=2, verdict=[1, 2, 9])
    other = joins(job, 2, epoch=1, halt_epoch=2, verdict=[0, 1, 5])
    takeover, out = taken_over(one, other)
    assert [message["settled"] for _, message in out.take("halt")] == [[1, 2, 9]] * 2
    state = takeover.controller.state
    assert state.round is not None and state.round.old_epoch == 2
    takeover.controller.node_down(2, "its connection closed")
    assert ["settled" in message for _, message in out.take("halt")] == [False], "it has been said"


def test_a_standby_that_came_later_knows_no_verdict() -> None:
    job = trains()
    takeover, out = taken_over(joins(job, 1, epoch=1, verdict=[0, 1, 5]), joins(job, 2, epoch=2, verdict=[-1, -1, -1]))
    assert [message["settled"] for _, message in out.take("halt")] == [[0, 1, 5]] * 2
    assert takeover.controller.state.round is not None and takeover.controller.state.round.old_epoch == 1


def test_of_two_who_play_a_rank_the_later_one_does() -> None:
    job = trains()
    old, new = joins(job, 1), joins(job, 2, ranks=[[2, "s0-r2", 0, True], [1, "e5-r1", 5, False]])
    takeover, out = taken_over(old, new)
    rank = takeover.controller.state.members.ranks[1]
    assert (rank.node, rank.uid, rank.alive, rank.restored) == (2, "e5-r1", True, False)
    assert [(node, message["rank"]) for node, message in out.take("fail_worker")] == [(1, 1)]


def test_it_is_not_started_again_from_the_beginning() -> None:
    """Its workers know only the store that is gone."""
    job = trains(max_restarts=3)
    takeover, out = taken_over(*(joins(job, node) for node in range(3)))
    takeover.controller.restart_job("why", set())
    assert out.result == (1, "why") and not out.take("start")


def test_the_controllers_node_is_not_drained() -> None:
    job = trains()
    takeover, _ = taken_over(joins(job, 1), joins(job, 2))
    answers: list[str] = []
    takeover.controller.drain(1, answers.append)
    assert answers == ["node 1 has the controller: it cannot be drained"]


def test_versions_on_disk_are_numbered_anew() -> None:
    job = trains(settings={"persist_dir": "/disk"})
    out = Recorder()
    joined = {node: joins(job, node) for node in (1, 2)}
    takeover = Takeover(out, lambda job, directory: Found([], [], 41), joined, joined[1].record, 990.0, 1, {0})
    assert takeover.controller.state.serial > 1000
