"""A job that begins from a version on disk: every rank as a replacement, or a refusal before anything is started."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec
from ff_core.contract.persisted import Found, Manifest, Part
from ff_core.controller.membership import Node
from ff_core.errors import ConfigError
from tests.controller.harness import LAYOUT, SETTINGS, Job

LAYOUTS = {
    rank: {"rank": rank, "slots": 2, "journal_capacity": 65536, "chunk_bytes": 4096, **LAYOUT} for rank in range(4)
}
NEW = Manifest(
    "version-00000008-120", 120, 5, 4, {rank: Part(f"rank{rank}", 50 + rank) for rank in range(4)}, LAYOUTS,
    settings=Settings.from_wire(SETTINGS | {"persist_dir": "/disk"}).to_wire(),
)  # fmt: skip
OLD = replace(NEW, id="version-00000007-60", version=60)


def begun(*found: Manifest, nodes: int = 2, nproc: int = 2, notes: Any = (), **options: Any) -> Job:
    def find(job: JobSpec, directory: str) -> Found:
        assert (job.world_size, directory) == (4, "/disk")
        return Found(list(found), list(notes), 9)

    return Job(nodes, nproc, settings={"persist_dir": "/disk"}, find=find, **options)


def ready(job: Job) -> None:
    for node in job.state.members.live_nodes():
        job.heard(node, "arenas_ready", epoch=job.state.epoch)


def loaded(job: Job, reasons: Any = None) -> None:
    for node, order in job.out.take("persist_load"):
        mine = {rank: text for rank, text in (reasons or {}).items() if rank in order["ranks"]}
        job.heard(node, "persist_loaded", id=order["id"], epoch=order["epoch"], reasons=mine)


def inventories(job: Job, version: int, full: Any = lambda rank: True) -> None:
    current = job.state.round
    assert current is not None
    for node in job.state.members.live_nodes():
        arenas = [
            [r.rank, node, "own", current.old_epoch, version, full(r.rank)] for r in job.state.members.on_node(node)
        ]
        job.heard(node, "inventory", epoch=current.epoch, arenas=arenas, live={})


def test_all_ranks_begin_as_replacements() -> None:
    job = begun(NEW, OLD)
    assert all(not order["ranks"] and not order["standby"] for _, order in job.out.take("start"))
    assert {node: sorted(order["own"]) for node, order in job.out.take("arenas")} == {0: [0, 1], 1: [2, 3]}
    ready(job)
    assert not job.out.take("placement")
    assert {n: order["ranks"] for n, order in job.out.sent if order["t"] == "persist_load"} == {
        0: {0: ["rank0", 50], 1: ["rank1", 51]}, 1: {2: ["rank2", 52], 3: ["rank3", 53]}
    }  # fmt: skip
    assert not job.out.take("halt")
    loaded(job)
    assert job.state.epoch == 1 and len(job.out.take("halt")) == 2
    assigned = {order["rank"]: node for node, order in job.out.take("assign")}
    assert assigned == {0: 0, 1: 0, 2: 1, 3: 1}
    inventories(job, 120)
    verdicts = job.out.take("verdict")
    assert len(verdicts) == 2
    for _, verdict in verdicts:
        assert (verdict["version"], verdict["newcomers"], verdict["restored"]) == (120, [], [0, 1, 2, 3])
        assert all(role == {"source": "slot", "full": True, "filled": False} for role in verdict["roles"].values())
        assert "constants" not in verdict
    assert job.state.kept == ("/disk/version-00000008-120", 120)
    job.resume()
    assert job.state.resuming is None
    job.commit(120)
    assert job.state.w == 120 and job.state.serial == 9
    job.commit(121)
    assert job.state.w == 121


def test_who_has_no_replicated_state_gets_it_from_who_has() -> None:
    """A lost node's ranks were written from replicas."""
    manifest = replace(NEW, layouts={rank: {**layout, "local_bytes": 4096} for rank, layout in LAYOUTS.items()})
    job = begun(manifest)
    ready(job)
    loaded(job)
    inventories(job, 120, full=lambda rank: rank < 2)
    verdict = job.out.take("verdict")[0][1]
    assert (verdict["newcomers"], verdict["source_rank"]) == ([2, 3], 0)


def test_frozen_state_comes_from_its_file() -> None:
    groups = [[0, 2], [1, 3]]
    files = {0: Part("zero", 1), 1: Part("one", 1)}
    job = begun(replace(NEW, frozen=[0, 1, 2, 3], groups=groups, constants=files))
    ready(job)
    loaded(job)
    inventories(job, 120)
    verdict = job.out.take("verdict")[0][1]
    assert verdict["constants"] == {0: "zero", 1: "one", 2: "zero", 3: "one"} and verdict["newcomers"] == []
    job.resume()
    job.die(3)
    inventories(job, 120)
    assert all("constants" not in later for _, later in job.out.take("verdict")), "now there are peers"


def test_a_death_before_all_have_begun() -> None:
    """As in any failover: the version is still in the slots."""
    job = begun(NEW)
    ready(job)
    loaded(job)
    job.die(2)
    assert job.state.epoch == 2 and job.state.resuming is not None
    inventories(job, 120)
    assert job.out.take("verdict")[0][1]["version"] == 120


def test_a_node_lost_while_it_loads_ends_the_job() -> None:
    job = begun(NEW)
    ready(job)
    job.controller.node_down(1, "power")
    assert job.out.result is not None and job.out.result[0] == 1
    assert "/disk/version-00000008-120: the same command goes on from there" in job.out.result[1]


def test_a_damaged_version_is_passed_over() -> None:
    job = begun(NEW, OLD)
    ready(job)
    loaded(job, {2: "checksum of chunk 4 does not match"})
    assert any("version-00000008-120 is damaged: rank 2: checksum of chunk 4" in text for text in job.out.said)
    assert job.state.epoch == 0
    loaded(job)
    inventories(job, 60)
    assert job.out.take("verdict")[0][1]["version"] == 60 and job.state.kept == ("/disk/version-00000007-60", 60)


def test_without_a_whole_version_the_job_ends() -> None:
    job = begun(NEW)
    ready(job)
    loaded(job, {2: "checksum of chunk 4 does not match"})
    assert job.out.result is not None and job.out.result[0] == 1
    assert "no older version" in job.out.result[1] and "give another persist_dir" in job.out.result[1]
    assert not job.out.take("halt") and not job.out.take("assign")


def test_another_jobs_version_ends_it_before_anything_is_started() -> None:
    def find(job: JobSpec, directory: str) -> Found:
        raise ConfigError("it is of another job")

    job = Job(2, 2, settings={"persist_dir": "/disk"}, find=find)
    assert job.out.result == (1, "it is of another job") and not job.out.take("start")


def test_an_empty_directory() -> None:
    job = begun(notes=["nothing is whole"])
    assert "nothing is whole" in job.out.said and sorted(len(o["ranks"]) for _, o in job.out.take("start")) == [2, 2]
    assert job.state.serial == 9


def test_other_nodes_than_before() -> None:
    job = begun(NEW, nodes=1, nproc=4)
    ready(job)
    loaded(job)
    assert {order["rank"]: node for node, order in job.out.take("assign")} == dict.fromkeys(range(4), 0)


def test_settings_that_are_given_now_win() -> None:
    then = Settings.from_wire({**SETTINGS, "replicas": 2, "interval": 4, "origins": {"interval": "the script"}})
    now = Settings.from_wire({**SETTINGS, "replicas": 3, "persist_dir": "/disk", "origins": {"replicas": "ff.json"}})
    both = then.replaced_by(now)
    assert (both.config.interval, both.config.replicas, both.config.persist_dir) == (4, 3, "")
    assert both.origins == {"interval": "the script", "replicas": "ff.json"}
    job = begun(replace(NEW, settings=then.to_wire()))
    assert job.state.config.interval == 4 and job.out.events[-2][0] == "settings"


def test_a_restart_goes_on_from_disk_too() -> None:
    job = begun(NEW, max_restarts=1)
    ready(job)
    loaded(job)
    inventories(job, 120)
    job.resume()
    job.commit(120)
    job.out.sent.clear()
    job.controller.restart_job("everything is lost", set())
    assert job.state.epoch == 2 and job.state.resuming is not None
    ready(job)
    loaded(job)
    inventories(job, 120)
    assert {order["version"] for _, order in job.out.take("verdict")} == {120}


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_rank_that_cannot_go_on_is_not_begun_again_from_the_same_version(restarts: int) -> None:
    job = begun(NEW, max_restarts=restarts)
    ready(job)
    loaded(job)
    inventories(job, 120)
    job.out.sent.clear()
    job.from_rank(1, "unresumable", epoch=job.state.epoch, reason="its data is gone")
    if not restarts:
        assert job.out.result is not None and job.out.result[0] == 1
        return
    assert job.state.resuming is None and job.state.kept is None
    assert sorted(len(order["ranks"]) for _, order in job.out.take("start")) == [2, 2]


def test_a_standby_that_comes_while_ranks_are_loaded() -> None:
    job = begun(NEW)
    job.controller.node_up(Node(2, "m", "host2", ("127.0.0.1", 4002), 1 << 40, job.out.clock))
    assert [node for node, order in job.out.take("start") if order["standby"]] == [2]
    ready(job)
    loaded(job)
    assert {order["rank"]: node for node, order in job.out.take("assign")} == {0: 0, 1: 0, 2: 1, 3: 1}
