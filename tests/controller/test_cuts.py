"""Networks that are cut anywhere: never two controllers that decide. And that a broken rule would be noticed."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from ff_core.controller.election import Election
from ff_core.controller.quorum import Quorum
from tests.controller.sim_cuts import Cuts
from tests.controller.sim_memory import Violation

RUNS = 150


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 7])
def test_never_two_controllers(nodes: int) -> None:
    runs = [Cuts(seed, nodes).run() for seed in range(RUNS)]
    assert sum(run.taken for run in runs) >= RUNS / 10
    if nodes > 2:
        assert sum(run.voted for run in runs) >= 5 and sum(run.suspended for run in runs) >= RUNS / 10
    else:
        assert not any(run.voted for run in runs)


def _half_is_enough(self: Election) -> bool:
    return bool(self.joined) and all(
        2 * len(places.keys() & self.joined.keys()) >= len(places) for places in self._counting()
    )


def _only_the_newest(self: Quorum, live: Any) -> bool:
    del self._told[:-1]
    return False


MUTANTS: dict[str, tuple[int, Any, str, Any]] = {
    "half of the nodes elect a controller": (4, Election, "has_majority", _half_is_enough),
    "a controller decides whoever it hears": (3, Quorum, "holds", lambda self, live: True),
    "older memberships do not count": (7, Quorum, "settle", _only_the_newest),
    "all who live need not have come": (5, Election, "is_complete", lambda self: bool(self.joined)),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_broken_rule_is_noticed(rule: str) -> None:
    nodes, *place = MUTANTS[rule]
    with mock.patch.object(*place), pytest.raises(Violation):
        for seed in range(1500):
            Cuts(seed, nodes).run()
