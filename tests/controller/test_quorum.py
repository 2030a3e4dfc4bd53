"""Which memberships count, and who may decide by them."""

from __future__ import annotations

from ff_core.contract.terms import can_elect
from ff_core.controller.election import Election
from ff_core.controller.quorum import Places, Quorum, is_majority
from tests.controller.test_takeover import joins, trains


def among(*nodes: int) -> Places:
    return {node: ["host", node] for node in nodes}


def told(*memberships: Places) -> Quorum:
    quorum = Quorum()
    for number, places in enumerate(memberships, 1):
        quorum.tells(number, places)
    return quorum


def test_a_majority_is_more_than_half_and_a_controller_needs_half() -> None:
    assert is_majority([0, 1, 2], [1, 2]) and not is_majority([0, 1, 2, 3], [2, 3, 9])
    assert can_elect(among(0, 1, 2)) and not can_elect(among(0, 1))
    assert Quorum().holds([]), "no agent has a record: nobody can be elected"
    assert told(among(0, 1)).holds([0]), "of two nodes nobody else can be elected"
    assert told(among(0, 1, 2, 3)).holds([0, 3]) and not told(among(0, 1, 2)).holds([0])


def test_the_older_membership_counts_until_half_and_all_who_live_have_the_newer() -> None:
    quorum = told(among(0, 1, 2, 3, 4), among(0, 1, 2))
    assert quorum.elders() == [among(0, 1, 2, 3, 4)]
    assert quorum.holds([0, 1, 2]) and not quorum.holds([0, 1]), "two are half of the newer one, and not of the older"
    live = [0, 1, 2]
    assert not quorum.has(0, 2, live) and not quorum.has(2, 2, live), "node 1 lives"
    assert quorum.has(1, 3, live) and quorum.elders() == []
    assert quorum.holds([0, 1])


def test_nobody_who_lives_may_know_the_older_membership_only() -> None:
    """It would be one of all who live, as far as it knows."""
    quorum = told(among(0, 1, 2, 3), among(0, 1, 2))
    assert not quorum.has(0, 2, [0, 1, 2]) and not quorum.has(1, 2, [0, 1, 2]), "they are half"
    assert quorum.settle([0, 1]), "node 2 is heard no more"


def test_the_same_nodes_are_the_same_membership() -> None:
    quorum = told(among(0, 1, 2), among(0, 1, 2))
    assert quorum.elders() == []


def test_an_empty_record_ends_all_that_once_it_has_come() -> None:
    quorum = told(among(0, 1, 2), {})
    assert not quorum.is_told() and not quorum.holds([0])
    quorum.has(0, 2, [0, 1])
    quorum.has(1, 2, [0, 1])
    assert quorum.holds([0])


def test_proof_counts_if_all_others_are_dead_and_for_who_was_not_away() -> None:
    quorum = told(among(0, 1, 2))
    quorum.dead = {1}
    assert not quorum.holds([0]) and quorum.unproven([0]) == {2: ("host", 2)}, "node 2 may have elected somebody"
    quorum.dead = {1, 2}
    assert quorum.holds([0])
    quorum.was_away()
    assert not quorum.holds([0]), "they may have elected somebody, and ended"


def test_who_has_an_older_record_and_who_has_a_newer_one_do_not_both_elect() -> None:
    """Nine nodes. Node 0 does not hear 5 to 8 any more; its record without them has come to 2, 3 and 4. Then it falls
    silent."""
    job = trains(9)
    old = {node: joins(job, node) for node in (1, 5, 6, 7, 8)}
    for node in (5, 6, 7, 8):
        job.controller.node_down(node, "it is silent")
    new = {node: joins(job, node) for node in (2, 3, 4)}
    assert not job.state.quorum.holds([0, 2, 3, 4]), "nor does node 0 decide: five of nine can elect somebody"
    one, other = Election(), Election()
    for joined in old.values():
        assert one.join(joined) == ""
    for joined in new.values():
        assert other.join(joined) == ""
    assert sorted(other.record.places) == [0, 1, 2, 3, 4] and one.has_majority()
    assert not other.has_majority(), "three of five, and not five of nine"


def test_who_joins_with_a_lower_term_asks_again() -> None:
    job, election = trains(3), Election()
    assert election.join(joins(job, 1, term=2)) == ""
    assert election.join(joins(job, 2, term=1)) == "term 1 is over" and election.term == 2
    assert election.join(joins(job, 2, term=3)) == "" and election.outdated() == [1]
    assert not election.has_majority() and not election.is_complete(), "node 1 may have joined others meanwhile"
    election.leave(1)
    assert election.join(joins(job, 1, term=3)) == "" and election.has_majority()


def test_all_who_live_are_enough_only_if_the_newest_record_is_of_one_who_was_heard() -> None:
    """Who was given up for its silence may have an old record, which lists nobody else that lives."""
    job, election = trains(2), Election()
    election.dead.add(0)
    election.join(joins(job, 1, heard=False))
    assert not election.is_complete() and not election.has_majority()


def test_whether_others_could_be_a_majority() -> None:
    assert not Quorum().can_be_outvoted() and not told(among(0, 1)).can_be_outvoted()
    assert told(among(0, 1, 2), among(0, 1)).can_be_outvoted(), "until all have the newer one"
