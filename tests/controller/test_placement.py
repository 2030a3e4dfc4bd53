"""Who holds whose copy: another failure domain, evenly, and as few moves as possible after a loss."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_core.controller.placement import place


def homes(nodes: int, per_node: int) -> dict[int, int]:
    return {rank: rank // per_node for rank in range(nodes * per_node)}


@pytest.mark.parametrize("nodes", [2, 3, 4, 8])
@pytest.mark.parametrize("per_node", [1, 2, 8])
@pytest.mark.parametrize("replicas", [1, 2])
def test_without_losses_every_node_holds_its_neighbours(nodes: int, per_node: int, replicas: int) -> None:
    holders = place(homes(nodes, per_node), range(nodes), replicas, {})
    count = min(replicas, nodes - 1)
    for rank, home in homes(nodes, per_node).items():
        assert holders[rank] == [(home + step) % nodes for step in range(1, count + 1)]
    load = Counter(node for chosen in holders.values() for node in chosen)
    assert set(load.values()) == {per_node * count}


@given(
    node_of=st.dictionaries(st.integers(0, 15), st.integers(0, 5), min_size=1),
    live=st.sets(st.integers(0, 5)),
    replicas=st.integers(0, 3),
    previous=st.dictionaries(st.integers(0, 15), st.lists(st.integers(0, 5), unique=True, max_size=3)),
)
def test_another_failure_domain_always(
    node_of: dict[int, int], live: set[int], replicas: int, previous: dict[int, list[int]]
) -> None:
    holders = place(node_of, sorted(live), replicas, previous)
    assert set(holders) == set(node_of)
    for rank, chosen in holders.items():
        assert node_of[rank] not in chosen, "a holder in the rank's own failure domain protects nothing"
        assert set(chosen) <= live and len(set(chosen)) == len(chosen)
        assert len(chosen) == min(replicas, len(live - {node_of[rank]})), "as many as there can be"


@given(nodes=st.integers(3, 6), per_node=st.integers(1, 8), replicas=st.integers(1, 2), data=st.data())
def test_stable_and_balanced_after_a_loss(nodes: int, per_node: int, replicas: int, data: st.DataObject) -> None:
    before = place(homes(nodes, per_node), range(nodes), replicas, {})
    gone = data.draw(st.integers(0, nodes - 1))
    live = [node for node in range(nodes) if node != gone]
    node_of = {
        rank: data.draw(st.sampled_from(live)) if home == gone else home
        for rank, home in homes(nodes, per_node).items()
    }
    after = place(node_of, live, replicas, before)
    for rank, chosen in before.items():
        still = [node for node in chosen if node != gone and node != node_of[rank]]
        assert after[rank][: len(still)] == still, "a holder that may stay has to stay"
    load = Counter(node for chosen in after.values() for node in chosen)
    share = sum(load.values()) / len(live)
    assert max(load.values()) <= 2 * share + per_node, "one node took it all"


def test_nowhere_to_go() -> None:
    assert place({0: 0, 1: 0}, [0], 1, {}) == {0: [], 1: []}
    assert place({0: 0, 1: 1}, [0, 1], 0, {}) == {0: [], 1: []}
    assert place({0: 3}, [0, 1], 1, {}) == {0: [0]}  # its own node is gone
