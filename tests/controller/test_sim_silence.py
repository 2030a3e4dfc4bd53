"""Simulated jobs whose controller falls silent: a majority goes on without it, and loses nothing."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from ff_core.controller.election import Election
from ff_core.controller.takeover import Takeover
from tests.controller.sim_memory import Violation
from tests.controller.simulation import Options, simulate

RUNS = 60
THREE = Options(nodes=3, nproc=1, faults=1, kinds=("silence",), iterations=6)
JOBS: dict[str, Options] = {
    "three nodes": THREE,
    "in a round": Options(nodes=3, nproc=2, spares=1, faults=2, kinds=("process", "silence"), iterations=8),
    "five nodes, several times": Options(
        nodes=5, nproc=1, replicas=2, spares=1, faults=3, iterations=10,
        kinds=("silence", "controller", "process", "partition"),
    ),
    "standbys that vote": Options(
        spares=1, standbys=3, faults=3, iterations=12, interval=0, has_local=True, same_machine=False,
        kinds=("silence", "partition", "process", "node"),
    ),
    "several loops": Options(
        nodes=4, nproc=1, spares=1, faults=2, loops=4, iterations=12, again=True, kinds=("silence", "process", "slot")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_promises_hold(name: str) -> None:
    worlds = [simulate(seed, JOBS[name]) for seed in range(RUNS)]
    assert sum(world.result == (0, "") for world in worlds) >= RUNS / 3
    assert sum(world.outvoted for world in worlds) >= RUNS / 4


def test_of_three_nodes_no_iteration_is_lost_and_no_job() -> None:
    worlds = [simulate(seed, THREE) for seed in range(2 * RUNS)]
    assert all(world.result == (0, "") and not world.restarts for world in worlds)
    assert all(world.outvoted == 1 for world in worlds)


def _half(self: Election) -> bool:
    return bool(self.joined) and 2 * len(self.joined) >= len(self.record.places)


_init = Takeover.__init__


def _knows_no_verdict(self: Takeover, *given: Any) -> None:
    _init(self, *given)
    state = self.controller.state
    assert state.round is not None
    state.round.settled = None


MUTANTS: dict[str, tuple[str, Any, str, Any]] = {
    "half of the nodes are enough": ("several loops", Election, "has_majority", _half),
    "verdicts that have reached some are forgotten": ("in a round", Takeover, "__init__", _knows_no_verdict),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_broken_rule_is_noticed(rule: str) -> None:
    name, *place = MUTANTS[rule]
    with mock.patch.object(*place), pytest.raises(Violation):
        for seed in range(600):
            simulate(seed, JOBS[name])
