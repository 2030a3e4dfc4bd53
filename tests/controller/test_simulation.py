"""Thousands of short jobs with every interleaving and fault drawn from a seed; and proof that broken rules would be
noticed.

A failure names its seed and options: `simulate(seed, Options(...))` repeats it exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ff_core.agent.halting import Halting
from ff_core.agent.replica_store import ReplicaStore
from ff_core.controller import decide as decide_module
from ff_core.controller.controller import Controller
from ff_core.controller.failovers import Failovers
from ff_core.controller.loop_end import LoopEnd
from ff_core.worker.fence import Fence
from ff_core.worker.replicator import Replicator
from tests.controller.sim_agent import SimPort
from tests.controller.sim_memory import Violation
from tests.controller.simulation import Options, World, simulate

RUNS = 60
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
    "during start-up": Options(faults=2, early=True, max_restarts=2, kinds=("process",)),
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
def test_promises_hold(name: str) -> None:
    options = JOBS[name]
    worlds = [simulate(seed, options) for seed in range(RUNS)]
    codes = [world.result[0] for world in worlds if world.result is not None]
    assert len(codes) == RUNS
    if options.faults == 0:
        assert codes == [0] * RUNS and not any(world.state.epoch for world in worlds)
        return
    assert sum(world.failovers + world.restarts for world in worlds) >= RUNS / 6, "the faults must hit"
    assert codes.count(0) >= RUNS / 6, "and jobs must survive them"


kinds = st.lists(st.sampled_from(["process", "node", "spare", "slot", "frozen", "partition"]), min_size=1, unique=True)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(1, 4),
    nproc=st.integers(1, 3),
    spares=st.integers(0, 2),
    replicas=st.integers(0, 3),
    interval=st.integers(1, 3),
    commit=st.sampled_from(["strict", "relaxed"]),
    iterations=st.integers(1, 6),
    faults=st.integers(1, 4),
    chosen=kinds,
    flags=st.tuples(*[st.booleans()] * 3),
    max_restarts=st.integers(0, 1),
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
    flags: tuple[bool, bool, bool],
    max_restarts: int,
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
            max_restarts=max_restarts,
        ),
    )


def test_the_same_seed_is_the_same_job() -> None:
    options = Options(**THREE, faults=2, kinds=("node", "process"))
    first, second = simulate(11, options), simulate(11, options)
    assert list(first.trace) == list(second.trace) and first.steps == second.steps


# ---- the checks themselves: every rule, broken, is noticed ---------------------------------------------------------


def _only_v_star_stays(self: ReplicaStore, version: int, old_epoch: int, new_epoch: int) -> None:
    for arena in self._all():
        for index, info in enumerate(arena.slot_infos()):
            if info.complete and (info.epoch, info.version) == (old_epoch, version):
                arena.restamp(index, new_epoch)
            else:
                arena.empty(index)


def _newer_versions_stay(self: ReplicaStore, version: int, old_epoch: int, new_epoch: int) -> None:
    for arena in self._all():
        for index, info in enumerate(arena.slot_infos()):
            if info.complete:
                arena.restamp(index, new_epoch)


_allocate = ReplicaStore.allocate


def _free_sources_at_once(self: ReplicaStore, own: Any, replicas: Any) -> None:
    _allocate(self, own, replicas)
    self.free_retired()


def _inventory_without_waiting(self: Halting) -> None:
    state, epoch = self._state, self._state.halt_epoch
    if epoch is None:
        return
    reports = [[r.rank, r.node, r.kind, r.epoch, r.version, r.full] for r in state.store.reports()]
    state.send("inventory", epoch=epoch, arenas=reports, live=dict(self.live))


def _the_dying_are_not_awaited(self: Halting, worker: Any) -> bool:
    epoch = self._state.halt_epoch
    return bool(worker.booted and not worker.dying and worker.asked == epoch and worker.halted != epoch)


def _the_new_are_awaited(self: Halting, worker: Any) -> bool:
    return bool(worker.dying or (worker.booted and worker.halted != self._state.halt_epoch))


async def _retires_nothing(self: SimPort, epoch: int) -> None:
    self.retired_before = epoch


def _commits_of_any_epoch(self: Controller, node: int, epoch: int, versions: dict[int, int]) -> None:
    for number, version in versions.items():
        rank = self.state.members.ranks[number]
        rank.committed = max(rank.committed, (self.state.epoch, version))
    self.publish_w()


def _leave_at_once(self: LoopEnd) -> None:
    versions = {other.leaving for other in self.members.ranks.values()}
    if len(versions) == 1 and None not in versions:
        (self.state.left_version,) = versions
        for node in self.members.live_nodes():
            self.out.send(node, "may_leave", epoch=self.state.epoch, version=self.state.left_version)


def _halt_reports_unsealed(self: Fence, epoch: int) -> tuple[int, bool]:
    self._halt_epoch = max(self._halt_epoch, epoch)
    return (self.version, True) if self._whole else (-1, False)


def _halt_reports_torn(self: Fence, epoch: int) -> tuple[int, bool]:
    self._halt_epoch = max(self._halt_epoch, epoch)
    return self.version, self.sealed == self.version


def _stale_epoch_on_bad_slot(self: Failovers, node: int, rank: int, epoch: int, reason: str) -> None:
    self.begin(set(), "a copy was damaged", self.out.now())


MUTANTS: dict[str, tuple[Options, list[tuple[Any, str, Any]]]] = {
    "older slots are deleted at the verdict": (
        Options(nproc=1, faults=5, iterations=5),
        [(ReplicaStore, "restamp", _only_v_star_stays)],
    ),
    "versions above v* stay": (Options(faults=2, iterations=5), [(ReplicaStore, "restamp", _newer_versions_stay)]),
    "inventories do not wait until ranks are frozen": (
        Options(faults=5, iterations=6),
        [(Halting, "progress", _inventory_without_waiting)],
    ),
    "inventories do not wait until the dying are gone": (
        Options(faults=5, iterations=6),
        [(Halting, "awaited", _the_dying_are_not_awaited)],
    ),
    "inventories wait for replacements": (
        Options(faults=5, iterations=6),
        [(Halting, "awaited", _the_new_are_awaited)],
    ),
    "connections of the old epoch stay open": (
        Options(**THREE, faults=3, kinds=("process", "node"), iterations=5),
        [(SimPort, "retire_before", _retires_nothing)],
    ),
    "sources are freed at the verdict": (
        Options(**THREE, faults=3, kinds=("process", "node"), iterations=5),
        [(ReplicaStore, "allocate", _free_sources_at_once)],
    ),
    "commits of an old epoch count": (
        Options(faults=3, iterations=5),
        [(Controller, "on_commit", _commits_of_any_epoch)],
    ),
    "ranks leave before the last version is safe": (Options(faults=0), [(LoopEnd, "may_leave", _leave_at_once)]),
    "unsealed live tensors count": (Options(faults=5, iterations=6), [(Fence, "halt", _halt_reports_unsealed)]),
    "live tensors count while they change": (Options(faults=2, iterations=5), [(Fence, "halt", _halt_reports_torn)]),
    "an old common version is chosen": (
        Options(faults=2, iterations=5),
        [(decide_module, "sorted", lambda values, reverse=False: sorted(values))],
    ),
    "replicas count as full": (
        Options(**THREE, faults=3, kinds=("slot", "process", "node"), has_local=True),
        [(decide_module, "replace", lambda report, **_: report)],
    ),
    "a slot is overwritten while it may be needed": (
        Options(interval=2, commit="relaxed", faults=0, iterations=6),
        [(Replicator, "_slot_for", lambda self, version: 0 if self._newest_slot < 0 else self._newest_slot)],
    ),
    "messages of old epochs are acted on": (
        Options(faults=3, kinds=("slot", "process"), iterations=5),
        [(Failovers, "on_bad_slot", _stale_epoch_on_bad_slot)],
    ),
}


@contextmanager
def mutated(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    patches = [mock.patch.object(owner, name, value, create=True) for owner, name, value in changes]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str) -> None:
    options, changes = MUTANTS[name]
    with mutated(changes), pytest.raises(Violation):
        for seed in range(600):
            simulate(seed, options)


def test_the_simulator_reports_how_to_repeat_a_violation() -> None:
    with (
        mutated([(LoopEnd, "may_leave", _leave_at_once)]),
        pytest.raises(Violation, match=r"seed 5, Options\(nodes=2"),
    ):
        simulate(5, Options(faults=0))
    assert World(5, Options(faults=0)).run() == (0, "")
