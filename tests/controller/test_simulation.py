"""Thousands of short jobs with every interleaving and fault drawn from a seed. That broken rules would be noticed is
shown by test_broken_rules.

A failure names its seed and options: `simulate(seed, Options(...))` repeats it exactly.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.controller.simulation import Options, World, simulate

RUNS = 60
SEEDS = [pytest.param(range(40), id="40"), pytest.param(range(40, 120), id="more", marks=pytest.mark.slow)]
THREE = {"nodes": 3, "nproc": 1}

JOBS: dict[str, Options] = {
    "no fault": Options(faults=0),
    "one process": Options(faults=1),
    "several processes": Options(faults=4, iterations=5),
    "a rank per node": Options(**THREE, faults=2, kinds=("process",), max_restarts=1),
    "nodes": Options(**THREE, faults=2, kinds=("node", "process")),
    "one node of two": Options(faults=1, kinds=("node",)),
    "spares": Options(**THREE, spares=1, faults=3, kinds=("node", "process", "spare")),
    "spares on machines of their own": Options(
        **THREE, iterations=8, spares=1, faults=2, kinds=("node", "process"), same_machine=False
    ),
    "replicated and frozen state": Options(
        **THREE, faults=3, kinds=("node", "process"), has_local=True, has_constant=True
    ),
    "damaged slots": Options(faults=3, kinds=("slot", "process"), iterations=5),
    "damaged slots, replicated state": Options(**THREE, faults=3, kinds=("slot", "process", "node"), has_local=True),
    "two replicas": Options(**THREE, replicas=2, faults=3, kinds=("node", "process")),
    "no replicas": Options(nproc=1, replicas=0, faults=2),
    "silent nodes": Options(**THREE, faults=2, kinds=("partition", "process")),
    "processes that stop answering": Options(faults=2, kinds=("frozen", "process")),
    "processes that do not get torn down": Options(faults=2, kinds=("undead", "process"), iterations=5),
    "the same, and nodes": Options(**THREE, replicas=2, faults=2, kinds=("undead", "node")),
    "every second version": Options(**THREE, interval=2, iterations=5, faults=3, kinds=("node", "process")),
    "every third, relaxed": Options(
        **THREE, interval=3, iterations=7, faults=2, commit="relaxed", kinds=("node", "process")
    ),
    "intervals that change": Options(interval=0, iterations=9, faults=3, kinds=("process", "frozen")),
    "the same, strict, a rank per node": Options(
        **THREE, interval=0, iterations=9, faults=3, commit="strict", kinds=("node", "process")
    ),
    "intervals that change, everything": Options(
        **THREE,
        interval=0,
        iterations=9,
        faults=4,
        spares=1,
        has_local=True,
        kinds=("node", "process", "spare", "slot", "frozen", "partition"),
        max_restarts=1,
    ),
    "standbys": Options(faults=2, standbys=2, kinds=("node", "process"), same_machine=False, iterations=6),
    "standbys that are too late for some": Options(
        **THREE, faults=2, standbys=2, kinds=("partition", "node"), same_machine=False, iterations=8, max_restarts=1
    ),
    "nodes that come again": Options(
        nodes=2,
        nproc=1,
        faults=3,
        standbys=2,
        returns=True,
        kinds=("partition", "node", "process"),
        same_machine=False,
        iterations=12,
        max_restarts=1,
    ),
    "nodes that are waited for": Options(
        **THREE,
        faults=3,
        standbys=3,
        late=True,
        kinds=("node", "partition", "process"),
        same_machine=False,
        iterations=8,
    ),
    "spares that are waited for": Options(
        **THREE, spares=1, faults=3, kinds=("node", "spare", "process"), same_machine=False, iterations=8
    ),
    "drains": Options(
        faults=2, standbys=2, kinds=("drain",), same_machine=False, iterations=14, has_local=True, has_constant=True
    ),
    "drains, every second or third version": Options(
        interval=0, faults=2, standbys=2, kinds=("drain",), same_machine=False, iterations=14, commit="relaxed"
    ),
    "drains and faults": Options(
        **THREE,
        faults=4,
        standbys=2,
        spares=1,
        kinds=("drain", "drain", "process", "frozen", "node", "slot"),
        same_machine=False,
        iterations=12,
        interval=2,
        commit="relaxed",
        has_local=True,
        max_restarts=1,
    ),
    "the controller dies": Options(**THREE, faults=1, kinds=("controller",), iterations=6),
    "the controller and processes": Options(**THREE, faults=2, kinds=("controller", "process"), iterations=6),
    "several controllers": Options(
        nodes=4, nproc=1, replicas=2, spares=1, faults=3, kinds=("controller", "process", "node"), iterations=8
    ),
    "controllers on machines of their own": Options(
        **THREE,
        spares=1,
        standbys=2,
        faults=2,
        kinds=("controller", "partition", "process"),
        same_machine=False,
        iterations=8,
    ),
    "the controller of two nodes dies": Options(
        faults=1, kinds=("controller",), iterations=8, interval=0, commit="relaxed"
    ),
    "the controller dies while it tells a verdict": Options(nodes=3, nproc=2, faults=1, kinds=("torn",), iterations=6),
    "the same, everything": Options(
        nodes=4,
        nproc=1,
        replicas=2,
        faults=4,
        kinds=("torn", "controller", "partition", "process", "node", "slot"),
        iterations=8,
        has_local=True,
        has_constant=True,
    ),
    "one node and standbys": Options(nodes=1, standbys=2, faults=2, kinds=("node", "process"), iterations=6),
    "standbys during start-up": Options(
        faults=2, early=True, standbys=2, max_restarts=2, kinds=("process", "node"), same_machine=False
    ),
    "during start-up": Options(faults=2, early=True, max_restarts=2, kinds=("process",)),
    "several loops": Options(faults=1, loops=4, iterations=9, again=True),
    "several loops, several processes": Options(
        faults=4,
        loops=4,
        iterations=12,
        again=True,
        interval=0,
        commit="relaxed",
        spares=1,
        has_local=True,
        kinds=("process", "frozen"),
    ),
    "several loops, everything": Options(
        **THREE,
        faults=4,
        loops=5,
        iterations=14,
        again=True,
        interval=0,
        spares=1,
        max_restarts=1,
        standbys=1,
        kinds=("process", "node", "slot", "frozen", "undead", "partition", "controller"),
        same_machine=False,
    ),
    "several loops, standbys that hold replicas": Options(
        nodes=1, faults=2, loops=4, iterations=9, standbys=2, kinds=("node", "process"), again=True, same_machine=False
    ),
    "several loops that nobody would find the end of": Options(
        faults=2, loops=3, iterations=9, max_restarts=1, kinds=("process", "node")
    ),
    "relaxed, everything": Options(
        **THREE,
        interval=2,
        iterations=5,
        faults=4,
        commit="relaxed",
        spares=1,
        has_local=True,
        kinds=("node", "process", "spare", "slot", "frozen", "partition"),
        max_restarts=1,
    ),
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("seeds", SEEDS)
def test_promises_hold(name: str, seeds: range) -> None:
    options, runs = JOBS[name], len(seeds)
    worlds = [simulate(seed, options) for seed in seeds]
    codes = [world.result[0] for world in worlds if world.result is not None]
    assert len(codes) == runs
    if options.faults == 0:
        assert codes == [0] * runs and not any(world.state.epoch for world in worlds)
        return
    assert sum(world.failovers + world.restarts for world in worlds) >= runs / 6, "the faults must hit"
    assert codes.count(0) >= runs / 6, "and jobs must survive them"


kinds = st.lists(
    st.sampled_from(["process", "node", "spare", "slot", "frozen", "partition", "controller", "torn", "silence"]),
    min_size=1,
    unique=True,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(1, 4),
    nproc=st.integers(1, 3),
    spares=st.integers(0, 2),
    replicas=st.integers(0, 3),
    interval=st.integers(0, 3),
    commit=st.sampled_from(["strict", "relaxed"]),
    iterations=st.integers(1, 9),
    faults=st.integers(1, 4),
    chosen=kinds,
    flags=st.tuples(*[st.booleans()] * 4),
    loops=st.integers(1, 4),
    max_restarts=st.integers(0, 1),
    standbys=st.integers(0, 2),
    returns=st.booleans(),
)
def test_promises_hold_for_any_job(
    seed: int,
    nodes: int,
    nproc: int,
    spares: int,
    replicas: int,
    interval: int,
    commit: str,
    iterations: int,
    faults: int,
    chosen: list[str],
    flags: tuple[bool, bool, bool, bool],
    loops: int,
    max_restarts: int,
    standbys: int,
    returns: bool,
) -> None:
    simulate(
        seed,
        Options(
            nodes=nodes,
            nproc=nproc,
            spares=spares,
            replicas=replicas,
            interval=interval,
            commit=commit,
            iterations=iterations,
            faults=faults,
            kinds=tuple(chosen),
            has_local=flags[0],
            has_constant=flags[1],
            same_machine=flags[2],
            again=flags[3],
            loops=min(loops, max(1, iterations // 2)),
            max_restarts=max_restarts,
            standbys=standbys,
            returns=returns,
        ),
    )


def test_jobs_do_wait_for_nodes() -> None:
    worlds = [simulate(seed, JOBS["nodes that are waited for"]) for seed in range(RUNS // 2)]
    waited = [world for world in worlds if world.came_in_time]
    assert len(waited) >= RUNS / 20
    assert sum(world.result == (0, "") for world in waited) >= len(waited) / 3


def test_drains_do_happen() -> None:
    worlds = [simulate(seed, JOBS["drains"]) for seed in range(RUNS // 3)]
    assert all(world.result == (0, "") for world in worlds), "no drain ends a job"
    answers = [answer for world in worlds for answer in world.answers]
    assert answers.count("") >= RUNS / 12 and len(set(answers)) > 2


def test_controllers_are_taken_over_at_every_step() -> None:
    """One job, and its controller dies at each of its steps, one after the other."""
    options = Options(**THREE, faults=1, kinds=("controller",), iterations=4, early=True)
    whole = simulate(3, Options(**THREE, faults=0, iterations=4))
    worlds = []
    for step in range(1, whole.steps, 5):
        world = World(3, options)
        world.next_fault = step
        world.run()
        worlds.append(world)
    assert {world.takeovers for world in worlds} == {0, 1}
    taken = [world for world in worlds if world.takeovers]
    assert len(taken) > len(worlds) / 2
    assert all(world.result == (0, "") or world.safe < 0 for world in taken), "nothing was committed yet"
    assert {world.result for world in worlds if not world.takeovers} <= {(1, "the controller is gone"), (0, "")}


def test_agents_that_missed_a_verdict_go_on() -> None:
    worlds = [simulate(seed, JOBS["the controller dies while it tells a verdict"]) for seed in range(RUNS // 3)]
    assert sum(world.laggards for world in worlds) >= RUNS / 20
    assert all(world.result == (0, "") for world in worlds if world.takeovers)


def test_intervals_do_change() -> None:
    worlds = [simulate(seed, JOBS["intervals that change"]) for seed in range(5)]
    assert set.union(*(world.intervals for world in worlds)) == {1, 2, 3}
    assert all(len(world.intervals) > 1 for world in worlds)
    gaps = {b - a for world in worlds for copies in world.copies.values() for a, b in itertools.pairwise(copies)}
    assert gaps >= {1, 2, 3}


def test_the_same_seed_is_the_same_job() -> None:
    options = Options(**THREE, faults=2, kinds=("node", "process"))
    first, second = simulate(11, options), simulate(11, options)
    assert list(first.trace) == list(second.trace) and first.steps == second.steps
