"""Simulated jobs whose loops are left by `break`: nobody can be made to go back into one, and nobody finds its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from ff_core.controller import failovers
from ff_core.controller.decide import decide
from ff_core.controller.loop_end import LoopEnd
from tests.controller.sim_memory import Violation
from tests.controller.sim_recovery import Recovering, Steps
from tests.controller.simulation import Options, simulate

RUNS = 40
BREAKS = {"breaks": True, "loops": 4, "iterations": 12}
THREE = {"nodes": 3, "nproc": 1}

JOBS: dict[str, Options] = {
    "one process": Options(**BREAKS, faults=1),
    "several": Options(**BREAKS, faults=4, interval=0, commit="relaxed", spares=1, kinds=("process", "frozen")),
    "own slots": Options(**BREAKS, faults=2, has_local=True, kinds=("process",)),
    "nodes and standbys": Options(**BREAKS, **THREE, faults=3, standbys=2, kinds=("node", "process"), replicas=2),
    "the controller": Options(**BREAKS, **THREE, faults=3, spares=1, kinds=("controller", "torn", "process")),
    "drains": Options(**BREAKS, faults=3, standbys=2, same_machine=False, kinds=("drain", "process"), interval=2),
    "everything": Options(
        **BREAKS,
        **THREE,
        faults=4,
        interval=0,
        spares=1,
        max_restarts=1,
        standbys=1,
        kinds=("process", "node", "slot", "frozen", "undead", "partition", "controller"),
        same_machine=False,
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_promises_hold(name: str) -> None:
    worlds = [simulate(seed, JOBS[name]) for seed in range(RUNS)]
    assert sum(world.result == (0, "") for world in worlds) >= RUNS / 4
    assert sum(world.failovers + world.restarts for world in worlds) >= RUNS / 4


def test_a_death_alone_costs_no_start() -> None:
    worlds = [simulate(seed, JOBS["one process"]) for seed in range(3 * RUNS)]
    fine = [world for world in worlds if world.result == (0, "") and not world.restarts]
    assert len(fine) >= 2.5 * RUNS, "but for one at a mark"


def _goes_on_anyway(*, unfindable: Any, **rest: Any) -> Any:
    return decide(**rest)


def _says_nothing(self: Recovering, version: int) -> Steps:
    yield True


@contextmanager
def broken(rule: str) -> Iterator[None]:
    places: dict[str, Any] = {
        "the version may be v": (failovers, "decide", _goes_on_anyway),
        "survivors and newcomers go on": (Recovering, "_left", _says_nothing),
        "nobody listens": (LoopEnd, "on_left", lambda self, node, rank, epoch, version: None),
    }
    with mock.patch.object(*places[rule]):
        yield


@pytest.mark.parametrize("rule", ["the version may be v", "survivors and newcomers go on", "nobody listens"])
def test_a_broken_rule_is_noticed(rule: str) -> None:
    with broken(rule), pytest.raises(Violation):
        for seed in range(3 * RUNS):
            simulate(seed, JOBS["several"])
