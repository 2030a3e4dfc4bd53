"""Jobs of the simulator that end, or lose their power, and begin again from what is on disk."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.controller.sim_disk import Disk
from tests.controller.simulation import MOST_STEPS, Options, World, simulate
from tests.controller.test_simulation import SEEDS

RUNS = 40
APART = {"same_machine": False, "persist": True}

JOBS: dict[str, Options] = {
    "one node of two": Options(**APART, nproc=1, kinds=("node",), iterations=9),
    "replicated and frozen state": Options(
        **APART, nodes=3, nproc=1, faults=2, kinds=("node", "process"), iterations=9, has_local=True, has_constant=True
    ),
    "partitions, nodes that come": Options(
        **APART, nodes=3, nproc=1, faults=3, kinds=("node", "partition", "process"), standbys=1, late=True,
        iterations=12, has_local=True,
    ),
    "damaged slots": Options(**APART, nodes=3, nproc=1, faults=3, kinds=("slot", "node"), iterations=12),
    "intervals that change": Options(
        **APART, interval=0, commit="relaxed", faults=2, kinds=("node", "process"), iterations=14, has_local=True
    ),
    "drains": Options(**APART, faults=2, standbys=2, kinds=("drain", "node"), iterations=14, has_constant=True),
    "restarts": Options(
        **APART, nodes=2, nproc=1, replicas=0, faults=2, kinds=("process", "node"), iterations=12, max_restarts=2
    ),
}  # fmt: skip


def again(world: World, disk: Disk, seed: int, **changes: object) -> World:
    """The same command, on machines that hold, or others."""
    options = replace(world.options, faults=0, standbys=0, late=False, early=False, **changes)
    newest = disk.manifests[-1]
    second = simulate(seed, options, disk)
    assert second.result == (0, ""), second.result
    assert second.verdicts[1] == newest.version, "it goes on from the newest version"
    return second


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("seeds", SEEDS)
def test_the_next_start_goes_on(name: str, seeds: range) -> None:
    """However the first one ends."""
    options, ended = JOBS[name], 0
    for seed in seeds:
        disk = Disk()
        world = simulate(seed, options, disk)
        ended += world.result is not None and world.result[0] == 69
        attempt, nodes = world.controller.persisting._attempt, world.state.members.nodes
        waits_for = [] if attempt is None else list(attempt.writers.values()) or [attempt.sealer]
        assert all(nodes[node].alive for node in waits_for), "no version would be written any more"
        if disk.manifests:
            again(world, disk, seed)
    assert ended >= len(seeds) / 15 or "drains" in name or "restarts" in name


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("seeds", SEEDS)
def test_a_loss_of_power(name: str, seeds: range) -> None:
    """At any moment: what is complete by then is what the next start goes on from. Another number of nodes is fine."""
    options, went_on = JOBS[name], 0
    for seed in seeds:
        disk = Disk()
        world = simulate(seed, options, disk, random.Random(seed).randrange(300, 3000))
        if disk.manifests:
            went_on += 1
            ranks = options.nodes * options.nproc
            again(world, disk, seed, **({"nodes": 1, "nproc": ranks} if seed % 3 == 0 else {}))
    assert went_on >= len(seeds) / 4


def test_faults_while_ranks_begin_from_disk() -> None:
    """Processes die, nodes come and go in the second start, too; a third one goes on from what is there then."""
    options, survived = JOBS["partitions, nodes that come"], 0
    for seed in range(2 * RUNS):
        disk = Disk()
        simulate(seed, options, disk, 2500)
        if not disk.manifests:
            continue
        second = simulate(seed, replace(options, early=True, kinds=("process", "node"), faults=2), disk)
        assert second.result is not None
        survived += second.result[0] == 0
        if second.result[0] != 0:
            again(second, disk, seed)
    assert survived >= RUNS / 6


def test_a_damaged_version_is_passed_over() -> None:
    options, passed = JOBS["one node of two"], 0
    for seed in range(RUNS):
        disk = Disk()
        simulate(seed, options, disk, 2500)
        if len(disk.manifests) < 2:
            continue
        passed += 1
        disk.damaged.add((disk.manifests[-1].id, seed % 2))
        older = disk.manifests[-2].version
        second = simulate(seed, replace(options, faults=0), disk)
        assert second.result == (0, "") and second.verdicts[1] == older
    assert passed >= RUNS / 10


def test_the_same_job_without_a_disk_ends_with_nothing() -> None:
    """So the disk is what the others go on from."""
    disk = Disk()
    world = simulate(1, replace(JOBS["one node of two"], persist=False), disk, MOST_STEPS)
    assert world.result is not None and not disk.files
