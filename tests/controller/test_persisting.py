"""When versions go to disk, what makes one complete, and a loss in each phase."""

from __future__ import annotations

from typing import Any

import pytest

from ff_core.contract.persisted import Manifest
from ff_core.contract.slot_report import SlotReport
from ff_core.controller.persisting import in_slots
from tests.controller.harness import Job, running

DISK = {"persist_dir": "/disk", "persist_interval_s": 30.0}


def test_slots_that_make_a_version() -> None:
    def report(rank: int, version: int, kind: Any = "own", node: int = 0, epoch: int = 3, full: bool = True) -> Any:
        return SlotReport(rank, node, kind, epoch, version, full)

    def chosen(*slots: SlotReport, groups: Any = (), has_local: bool = True) -> Any:
        found = in_slots(2, 3, slots, groups, has_local)
        return found and (found[0], {rank: (slot.node, slot.kind) for rank, slot in found[1].items()})

    assert chosen(report(0, 5), report(1, 5, node=1)) == (5, {0: (0, "own"), 1: (1, "own")})
    assert chosen(report(0, 6), report(0, 5), report(1, 5)) == (5, {0: (0, "own"), 1: (0, "own")})
    assert chosen(report(0, 5), report(1, 6)) is None
    assert chosen(report(0, 5), report(1, 5, epoch=2)) is None, "of another epoch"
    assert chosen(report(0, 5), report(1, 5, "replica"), report(1, 5, node=1)) == (5, {0: (0, "own"), 1: (1, "own")})
    # replicas lack replicated state: one own slot of each redundancy group has it
    replicas = [report(0, 5, "replica"), report(1, 5, "replica")]
    assert chosen(*replicas) is None and chosen(*replicas, has_local=False)[0] == 5
    assert chosen(report(0, 5), report(1, 5, "replica")) == (5, {0: (0, "own"), 1: (0, "replica")})
    assert chosen(report(0, 5), report(1, 5, "replica"), groups=[{0}, {1}]) is None
    assert chosen(report(0, 5, full=False), report(1, 5, "replica")) is None


def due(**options: Any) -> Job:
    """A job that trains, and whose next W is the one to be written."""
    job = running(settings={**DISK, **options.pop("settings", {})}, **options)
    job.out.clock += 31
    return job


def written(job: Job, *, reason: str = "", nodes: Any = (0, 1)) -> str:
    """What was asked for is written; the name of the folder."""
    orders = job.out.take("persist")
    (name,) = {order["id"] for _, order in orders}
    for node, order in orders:
        if node not in nodes:
            continue
        for rank in order["ranks"]:
            job.heard(node, "persist_part", id=name, rank=rank, file=f"rank{rank}", size=100 + rank, reason=reason)
    return name


def sealed(job: Job, *, reason: str = "") -> Manifest:
    ((node, order),) = job.out.take("persist_seal")
    job.heard(node, "persist_sealed", id=order["id"], reason=reason)
    return Manifest.from_wire(order["manifest"])


def kinds(job: Job) -> list[str]:
    return [kind for kind, _ in job.out.events]


def test_a_version_is_written_when_it_is_time() -> None:
    job = running(settings=DISK)
    job.commit(5)
    assert not job.out.take("persist")
    job.out.clock += 31
    job.commit(6)
    orders = {node: (order["version"], order["slot_epoch"], order["ranks"]) for node, order in job.out.take("persist")}
    assert orders == {0: (6, 0, {0: "own", 1: "own"}), 1: (6, 0, {2: "own", 3: "own"})}
    assert not job.out.take("persist_seal")


def test_training_goes_on_and_one_version_is_written_at_a_time() -> None:
    job = due()
    job.commit(5)
    name = written(job, nodes=(0,))
    job.out.clock += 100
    job.commit(6)
    assert not job.out.take("persist"), "node 1 still writes"
    for rank in (2, 3):
        job.heard(1, "persist_part", id=name, rank=rank, file=f"rank{rank}", size=1, reason="")
    manifest = sealed(job)
    assert (manifest.version, manifest.id, manifest.world_size) == (5, name, 4)
    assert sorted(manifest.ranks) == [0, 1, 2, 3] and manifest.layouts[2]["rank"] == 2
    assert manifest.line["script and its arguments"] == "train.py"
    assert job.out.events[-1][0] == "version_kept" and job.state.kept == (f"/disk/{name}", 5)
    job.commit(7)
    assert {order["version"] for _, order in job.out.take("persist")} == {7}


def test_off() -> None:
    for settings in ({"persist_dir": "/disk", "persist_interval_s": 0.0}, {}):
        job = running(settings=settings)
        job.out.clock += 10_000
        job.commit(5)
        assert not job.out.take("persist")


def test_a_part_that_fails_costs_the_version_only() -> None:
    job = due()
    job.commit(5)
    written(job, reason="No space left on device")
    assert [order["manifest"] for _, order in job.out.take("persist_seal")] == [{}], "it was given up"
    assert "version 5 was not written to /disk: rank 0 on node 0: No space left on device" in job.out.said
    assert kinds(job)[-1] == "version_lost" and job.state.kept is None
    job.out.clock += 31
    job.commit(6)
    written(job)
    assert sealed(job).version == 6


def test_a_version_that_cannot_be_completed() -> None:
    job = due()
    job.commit(5)
    written(job)
    sealed(job, reason="the other node's files are not seen")
    assert job.state.kept is None and kinds(job)[-1] == "version_lost"


def test_a_node_is_lost_while_it_writes() -> None:
    job = due()
    job.commit(5)
    name = written(job, nodes=(0,))
    job.controller.node_down(1, "power")
    assert "version_lost" in kinds(job)
    assert [order["manifest"] for _, order in job.out.take("persist_seal")] == [{}], "it was given up"
    job.heard(0, "persist_part", id=name, rank=0, file="rank0", size=1, reason="")  # too late, or twice
    assert job.state.kept is None


def test_another_node_is_lost_while_one_writes() -> None:
    """Its part is on disk already: the version becomes complete in the middle of the failover."""
    job = due()
    job.commit(5)
    name = written(job, nodes=(1,))
    job.controller.node_down(1, "power")
    for rank in (0, 1):
        job.heard(0, "persist_part", id=name, rank=rank, file=f"rank{rank}", size=1, reason="")
    assert sealed(job).version == 5 and job.state.kept == (f"/disk/{name}", 5)


def test_a_node_that_leaves_in_order_is_not_waited_for() -> None:
    job = due()
    job.commit(5)
    written(job, nodes=(0,))
    job.controller.gone(1)
    assert kinds(job)[-1] == "version_lost"
    job.out.clock += 31
    job.commit(6)
    assert job.out.take("persist")


def test_the_node_that_completes_it_is_lost() -> None:
    job = due(nodes=3)
    job.commit(5)
    written(job, nodes=(0, 1, 2))
    ((node, _),) = job.out.take("persist_seal")
    job.controller.node_down(node, "power")
    assert kinds(job).count("version_lost") == 1 and job.state.kept is None


def test_nothing_is_written_before_frozen_state_is() -> None:
    job = Job(2, 1, settings=DISK)
    job.own_at = {0: 0, 1: 1}
    for rank in job.ranks:
        job.protect(rank, has_constant=True)
    for node in (0, 1):
        job.heard(node, "arenas_ready", epoch=0)
    for rank in job.ranks:
        job.from_rank(rank, "training")
    job.commit(1)
    job.out.clock += 31
    job.commit(2)
    assert not job.out.take("persist")
    job.from_rank(0, "constants", file="rank00000-1.tensors", size=7)
    job.commit(3)
    written(job)
    manifest = sealed(job)
    assert manifest.frozen == [0, 1] and manifest.constants[0].file == "rank00000-1.tensors"


def test_memory_for_what_is_written_counts() -> None:
    limit = {"memory_limit_bytes": 3 << 20, "chunk_bytes": 4096}
    sizes = {"sent_bytes": 900_000, "local_bytes": 0, "blob_capacity": 4096}

    def problem(**settings: Any) -> Any:
        job = Job(1, 1, settings={**limit, "replicas": 0, **settings})
        job.own_at = {0: 0}
        job.protect(0, **sizes)
        return job.out.result

    assert problem() is None
    assert problem(memory_limit_bytes=2 << 20, **DISK)[0] == 1


def test_a_signal_stops_the_job() -> None:
    """What is safe is written while the workers come to their end; of a failover there is nothing."""
    job = running(settings={**DISK, "persist_interval_s": 0.0}, version=4)
    job.controller.stop("stopped by SIGTERM")
    assert {order["version"] for _, order in job.out.take("persist")} == {4}
    job = running(settings={**DISK, "persist_interval_s": 0.0}, version=4)
    job.die(1)
    job.controller.stop("stopped by SIGTERM")
    assert not job.out.take("persist")
    job = running()
    job.controller.stop("stopped by SIGTERM")
    assert not job.out.take("persist")


# ---- before the job ends ------------------------------------------------------------------------------------------


def without_a_place(**settings: Any) -> Job:
    """Node 1 of two machines is lost, and nobody has come in time; nodes have reported versions 3 and 4."""
    job = running(settings={**DISK, "place_timeout_s": 60.0, **settings}, same_machine=False)
    job.controller.node_down(1, "power")
    current = job.state.round
    assert current is not None
    arenas = []
    for version in (3, 4):
        arenas += [[rank, 0, "own", 0, version, True] for rank in (0, 1)]
        arenas += [[rank, 0, "replica", 0, version, True] for rank in (2, 3)]
    job.heard(0, "inventory", epoch=current.epoch, arenas=arenas, live={0: 4, 1: 4})
    assert job.out.result is None and current.waits_since is not None
    job.out.clock += 61
    for node in job.state.members.live_nodes():
        job.state.members.nodes[node].last_beat = job.out.clock
    job.controller.tick()
    return job


def test_the_newest_version_is_written_before_the_job_ends() -> None:
    job = without_a_place()
    assert job.out.result is None
    job.controller.tick()
    ((node, order),) = job.out.take("persist")
    assert (node, order["version"], order["slot_epoch"]) == (0, 4, 0)
    assert order["ranks"] == {0: "own", 1: "own", 2: "replica", 3: "replica"}
    for rank in range(4):
        job.heard(0, "persist_part", id=order["id"], rank=rank, file=f"rank{rank}", size=1, reason="")
    assert sealed(job).version == 4
    job.controller.tick()
    assert job.out.result is not None
    code, text = job.out.result
    assert code == 69 and f"/disk/{order['id']}: the same command goes on from there" in text


def test_what_is_on_disk_already_is_not_written_again() -> None:
    job = due(same_machine=False, settings={"place_timeout_s": 0.0})
    job.commit(5)
    written(job)
    sealed(job)
    job.controller.node_down(1, "power")
    current = job.state.round
    assert current is not None
    arenas = [[rank, 0, "own" if rank < 2 else "replica", 0, 5, True] for rank in range(4)]
    job.heard(0, "inventory", epoch=current.epoch, arenas=arenas, live={})
    assert not job.out.take("persist")
    assert job.out.result is not None and job.out.result[0] == 69 and "goes on from there" in job.out.result[1]


def test_the_end_does_not_wait_for_a_disk_for_ever() -> None:
    job = without_a_place()
    job.out.clock += 601
    job.state.members.nodes[0].last_beat = job.out.clock
    job.controller.tick()
    assert job.out.result is not None and job.out.result[0] == 69
    assert "not written to /disk: writing took longer than 600 s" in job.out.result[1]


@pytest.mark.parametrize("phase", ["part", "seal"])
def test_the_last_version_cannot_be_written(phase: str) -> None:
    job = without_a_place()
    written(job, reason="No space left on device" if phase == "part" else "")
    if phase == "seal":
        sealed(job, reason="No space left on device")
    job.controller.tick()
    assert job.out.result is not None and job.out.result[0] == 69
    assert "was not written to /disk: " in job.out.result[1] and "No space left" in job.out.result[1]


def test_a_node_comes_while_the_last_version_is_written() -> None:
    """The job goes on; the version is kept, and does no harm."""
    from ff_core.controller.membership import Node

    job = without_a_place()
    name = written(job, nodes=())
    job.controller.node_up(Node(2, "m2", "host2", ("127.0.0.1", 4002), 1 << 40, job.out.clock))
    assert not job.state.members.absent()
    job.controller.tick()
    assert job.out.result is None
    for rank in range(4):
        job.heard(0, "persist_part", id=name, rank=rank, file=f"rank{rank}", size=1, reason="")
    sealed(job)
    job.controller.tick()
    assert job.out.result is None and job.state.kept == (f"/disk/{name}", 4)


def test_no_version_in_slots() -> None:
    """What only live tensors hold is not written; the words say so."""
    job = running(settings={**DISK, "place_timeout_s": 0.0}, same_machine=False)
    job.controller.node_down(1, "power")
    current = job.state.round
    assert current is not None
    arenas = [[rank, 0, "replica", 0, 4, True] for rank in (2, 3)]
    job.heard(0, "inventory", epoch=current.epoch, arenas=arenas, live={0: 4, 1: 4})
    assert job.out.result is not None and job.out.result[0] == 69
    assert "no version lies in slots of every rank" in job.out.result[1]
