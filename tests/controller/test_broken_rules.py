"""The simulator's checks themselves: every rule of docs/protocol.md, broken, is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from ff_core.agent.agent import Agent
from ff_core.agent.allegiance import Allegiance
from ff_core.agent.halting import Halting
from ff_core.agent.replica_store import ReplicaStore
from ff_core.contract.schedule import CopySchedule
from ff_core.contract.stamps import stamp
from ff_core.controller import decide as decide_module
from ff_core.controller.controller import Controller
from ff_core.controller.drains import Drains
from ff_core.controller.election import Election
from ff_core.controller.failovers import Failovers
from ff_core.controller.loop_end import LoopEnd
from ff_core.controller.membership import Membership
from ff_core.controller.state import JobState
from ff_core.worker.fence import Fence
from ff_core.worker.replicator import Replicator
from tests.controller.sim_agent import SimPort
from tests.controller.sim_memory import Violation
from tests.controller.sim_recovery import Steps
from tests.controller.sim_worker import SimWorker
from tests.controller.simulation import Options, World, simulate

THREE = {"nodes": 3, "nproc": 1}
DRAINS = Options(
    faults=2, standbys=2, kinds=("drain",), same_machine=False, iterations=14, interval=0, commit="relaxed"
)


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


def _gate_reads_before_w(self: SimWorker) -> Steps:
    assert self.fence is not None and self.replicator is not None
    replicator, due = self.replicator, self.fence.version + 1 == self.schedule.next
    yield from self._until(lambda: replicator.sim.is_copied(replicator.newest))
    self.schedule.after_next(self.page.load("interval") or 1)
    if due:
        yield from self._committed_everywhere(replicator.newest)


def _survivors_keep_theirs(self: CopySchedule, version: int, interval: int) -> None:
    self._copied = (*(v for v in self._copied if v < version), version)
    if self.next <= version:
        self.next, self._then = version + interval, interval


_on_w = Agent.on_w


def _w_with_its_interval_late(self: Agent, epoch: int, version: int, interval: int, pause: bool) -> None:
    before = {worker.uid: worker.page.load("interval") or interval for worker in self.workers.ranks()}
    _on_w(self, epoch, version, interval, pause)
    for worker in self.workers.ranks():
        late = worker.page.load("w_stamp") == stamp(epoch, version) and worker.rank % 2
        worker.page.store("interval", before[worker.uid] if late else interval)


def _nobody_pauses(self: SimWorker) -> Steps:
    return
    yield


_move = Drains._move


def _moves_only_if_there_is_something_to_move(self: Drains) -> None:
    if self._to_move():
        _move(self)


_report = Allegiance.report


def _all_have_restored(self: Allegiance) -> dict[str, Any] | None:
    report = _report(self)
    return report and {**report, "ranks": [[*entry[:3], True] for entry in report["ranks"]]}


_take_replacement = Membership.take_replacement


def _takes_the_best_spare(self: Membership, home: int, *, stays: bool = False) -> tuple[int, str | None, bool] | None:
    return _take_replacement(self, home)


LOOPS = Options(faults=2, loops=4, iterations=9, again=True)
TORN = Options(nodes=3, nproc=2, faults=1, kinds=("torn",), iterations=6)

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
    "the interval is taken without waiting for W": (
        Options(interval=0, faults=0, iterations=9),
        [(SimWorker, "_gate", _gate_reads_before_w)],
    ),
    "survivors of a death keep their intervals": (
        Options(interval=0, faults=2, iterations=9),
        [(CopySchedule, "begin_epoch", _survivors_keep_theirs)],
    ),
    "W comes before its interval": (
        Options(interval=0, faults=0, iterations=9),
        [(Agent, "on_w", _w_with_its_interval_late)],
    ),
    "who missed a verdict keeps slots as they are": (TORN, [(Halting, "_settle", lambda self: None)]),
    "newcomers are taken for survivors at a takeover": (
        replace(TORN, faults=2, replicas=2, has_local=True, has_constant=True),
        [(Allegiance, "report", _all_have_restored)],
    ),
    "a deputy takes over without all who live": (
        replace(TORN, kinds=("controller",)),
        [(Election, "is_complete", lambda self: bool(self.joined))],
    ),
    "nobody takes over": (replace(TORN, kinds=("controller",)), [(Allegiance, "report", lambda self: None)]),
    "nobody pauses for a drain": (DRAINS, [(SimWorker, "_pause", _nobody_pauses)]),
    "a drain that is not possible any more leaves ranks pausing": (
        replace(DRAINS, kinds=("drain", "drain", "node"), faults=5, **THREE, replicas=2, standbys=1, interval=3),
        [(Drains, "_move", _moves_only_if_there_is_something_to_move)],
    ),
    "a death behind a loop halts the others": (LOOPS, [(JobState, "has_left", lambda self: False)]),
    "old processes live on when all go back": (LOOPS, [(Agent, "on_fail_worker", lambda self, rank, reason: None)]),
    "a lost holder is not missed behind a loop": (
        replace(LOOPS, nodes=1, standbys=2, kinds=("node",), same_machine=False),
        [(LoopEnd, "holder_lost", lambda self: None)],
    ),
    "who goes back takes spares elsewhere": (
        replace(LOOPS, spares=1, has_local=True),
        [(Membership, "take_replacement", _takes_the_best_spare)],
    ),
    "batches are kept from W on": (
        Options(interval=0, faults=5, iterations=9, kinds=("process", "slot")),
        [(CopySchedule, "before", lambda self, committed: committed)],
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
