"""A controller that hears less than half of the nodes decides nothing, and ends; and what ends that."""

from __future__ import annotations

from ff_core.controller.succession import PROOF_S
from tests.controller.harness import Job
from tests.controller.test_takeover import newest, trains


def acknowledged(job: Job, *nodes: int) -> None:
    """The agents of `nodes` have the newest record."""
    for node in nodes:
        job.heard(node, "recorded", number=job.controller.succession.number)


def ticks(job: Job, seconds: float) -> None:
    """Time passes, and everybody is heard who lives."""
    for _ in range(round(seconds * 10)):
        job.out.clock += 0.1
        for node in job.state.members.live_nodes():
            job.state.members.nodes[node].last_beat = job.out.clock
        job.controller.tick()


def suspended(nodes: int = 3) -> Job:
    """Node 0 does not hear the others any more."""
    job = trains(nodes)
    ticks(job, 0.5)
    for node in range(1, nodes):
        job.controller.node_down(node, "no heartbeat")
    return job


def test_nothing_is_decided_without_half_of_the_nodes() -> None:
    job = suspended()
    job.out.take("halt")
    job.inventory(0, 4)
    job.commit(9)
    ticks(job, 1.0)
    assert not job.out.take("verdict") and not job.out.take("w")
    assert sorted(newest(job, 0)[1]["places"]) == [0, 2], "nor is anybody told of another membership"
    assert not job.out.ended_by
    ticks(job, PROOF_S)
    assert job.out.ended_by == "node 1, 2 cannot be heard from node 0, and may go on without it"
    assert job.state.finished and job.out.result is None
    assert not any(kind == "job_end" for kind, _ in job.out.events), "others write down what happens now"


def test_half_of_an_even_number_and_the_controller_go_on() -> None:
    job = trains(4)
    ticks(job, 0.5)
    for node in (1, 2):
        job.controller.node_down(node, "no heartbeat")
    ticks(job, 2 * PROOF_S)
    assert job.state.may_decide() and not job.out.ended_by


def test_nodes_that_are_lost_one_after_another_count_no_more() -> None:
    job = trains(3)
    acknowledged(job, 0, 1, 2)
    job.controller.node_down(2, "no heartbeat")
    assert newest(job)[1]["elders"] == [{n: [f"host{n}", 100 + n] for n in range(3)}]
    acknowledged(job, 0)
    assert newest(job)[1]["elders"], "node 1 lives, and may know nothing of it"
    acknowledged(job, 1)
    assert newest(job)[1]["elders"] == [], "agents are told"
    job.controller.node_down(1, "no heartbeat")
    assert job.state.may_decide()


def test_it_goes_on_if_all_others_are_dead() -> None:
    job = suspended()
    assert sorted(job.controller.succession.unproven()) == [1, 2]
    job.controller.succession.proven_dead([1])
    assert not job.state.may_decide(), "node 2 may live, and may have been elected before node 1 died"
    job.controller.succession.proven_dead([2])
    assert job.state.may_decide() and job.controller.succession.unproven() == {}
    ticks(job, 2 * PROOF_S)
    assert not job.out.ended_by


def test_what_was_held_back_is_decided_then() -> None:
    """All of the job is on node 0 again before it may decide: its inventory is there."""
    job = suspended()
    job.out.take("verdict")
    state = job.state
    assert state.round is not None and sorted(state.members.absent()) == [1, 2]
    for number in (1, 2):  # as if processes had come up for them
        rank = state.members.ranks[number]
        rank.node, rank.uid, rank.alive, rank.restored = 0, f"new{number}", True, False
    arenas = [[rank, 0, kind, 0, 4, True] for rank in range(3) for kind in ("own", "replica")]
    job.heard(0, "inventory", epoch=state.epoch, arenas=arenas, live={})
    assert not job.out.take("verdict")
    job.controller.succession.proven_dead([1, 2])
    assert [message["version"] for _, message in job.out.take("verdict")] == [4]


def test_who_stood_still_trusts_no_proof_and_holds_nobody_for_silent() -> None:
    job = trains(3)
    ticks(job, 0.5)
    job.out.clock += 60.0
    job.controller.tick()
    assert job.state.members.live_nodes() == [0, 1, 2], "nobody was silent: nobody read"
    for node in (1, 2):
        job.controller.node_down(node, "its connection closed")
    job.controller.succession.proven_dead([1, 2])
    assert not job.state.may_decide(), "they may have elected another one, which has ended the job"


def test_no_version_is_published_meanwhile() -> None:
    """Two standbys are heard no more. No rank is lost, and there is no round."""
    job = trains(3)
    for node in (1, 2):
        job.state.members.nodes[node].alive = False
    for rank in job.state.members.ranks.values():
        rank.committed = (0, 9)
    job.controller.publish_w()
    assert not job.out.take("w") and job.state.w == 4
    job.controller.succession.proven_dead([1, 2])
    assert [message["version"] for _, message in job.out.take("w")] == [9]


def test_nobody_may_leave_the_loop_meanwhile() -> None:
    job = trains(3)
    for rank in job.ranks:
        job.from_rank(rank, "leaving", epoch=0, version=5, again=False)
    job.state.members.nodes[1].alive = job.state.members.nodes[2].alive = False
    job.state.w = 5
    job.controller.loop_end.may_leave()
    assert not job.out.take("may_leave")
    job.state.members.nodes[1].alive = True
    job.controller.loop_end.may_leave()
    assert job.out.take("may_leave")


def test_two_nodes_are_told_once_that_they_are_no_majority() -> None:
    job = trains(2)
    job.controller.succession.look(nodes=True)
    assert sum("two nodes are no majority without node 0" in text for text in job.out.said) == 1
    assert not any("majority" in text for text in trains(3).out.said)
