"""Which versions on disk a job goes on from, and what it is told of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ff_core.contract import persisted
from ff_core.contract.job import JobSpec
from ff_core.contract.persisted import MANIFEST, Manifest, Part
from ff_core.errors import ConfigError

JOB = JobSpec(["train.py", "--lr", "0.1"], 2, 1, "", 0)


def write(directory: Path, serial: int, version: int, **changes: Any) -> Path:
    folder = directory / persisted.folder_name(serial, version)
    folder.mkdir()
    ranks = {}
    for rank in range(2):
        (folder / persisted.rank_file(rank)).write_bytes(b"x" * (10 + rank))
        ranks[rank] = Part(persisted.rank_file(rank), 10 + rank)
    (directory / persisted.CONSTANTS).mkdir(exist_ok=True)
    (directory / persisted.CONSTANTS / "c").write_bytes(b"yyy")
    manifest = Manifest(
        folder.name, version, 3, 2, ranks, {0: {"sent_bytes": 1}, 1: {"sent_bytes": 2}}, {0: Part("c", 3)},
        [[0], [1]], [0, 1], False, {"replicas": 1}, persisted.line_of(JOB),
    )  # fmt: skip
    (folder / MANIFEST).write_bytes(persisted.encode(replace(manifest, **changes).to_wire()))
    return folder


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, 120)
    manifest = persisted.decode((folder / MANIFEST).read_bytes())
    assert (manifest.version, manifest.epoch, manifest.ranks[1]) == (120, 3, Part("rank00001.slot", 11))
    assert manifest.layouts[1] == {"sent_bytes": 2} and manifest.groups == [[0], [1]]
    assert Manifest.from_wire(manifest.to_wire()) == manifest


def test_nothing_there(tmp_path: Path) -> None:
    assert persisted.find(JOB, str(tmp_path / "none")) == persisted.Found()
    (tmp_path / "version-00000004-7").mkdir()  # never completed
    found = persisted.find(JOB, str(tmp_path))
    assert (found.usable, found.notes, found.serial) == ([], [], 5)


def test_the_newest_is_what_was_written_last(tmp_path: Path) -> None:
    """A script that was started again from its beginning counts anew."""
    write(tmp_path, 9, 700)
    write(tmp_path, 10, 20)
    found = persisted.find(JOB, str(tmp_path))
    assert [manifest.version for manifest in found.usable] == [20, 700] and found.serial == 11 and not found.notes


def damage(folder: Path, how: str) -> None:
    manifest = folder / MANIFEST
    if how == "torn":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif how == "flipped":
        manifest.write_text(manifest.read_text().replace("120", "121", 1))
    elif how == "missing":
        (folder / persisted.rank_file(1)).unlink()
    elif how == "short":
        (folder / persisted.rank_file(1)).write_bytes(b"x")
    elif how == "constants":
        (folder.parent / persisted.CONSTANTS / "c").write_bytes(b"y")
    elif how == "format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    else:
        folder.rename(folder.with_name("version-00000009-120"))


DAMAGE = {
    "torn": "manifest.json is damaged", "flipped": "the checksum does not match",
    "missing": "rank00001.slot is missing",
    "short": "rank00001.slot has 1 bytes, not 11", "format": "it has format 2", "renamed": "of something else",
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_version_is_passed_over_for_an_older_one(tmp_path: Path, how: str) -> None:
    write(tmp_path, 7, 60)
    damage(write(tmp_path, 8, 120), how)
    found = persisted.find(JOB, str(tmp_path))
    assert [manifest.version for manifest in found.usable] == [60]
    (note,) = found.notes
    assert "-120 is passed over" in note and DAMAGE[how] in note


@pytest.mark.parametrize("how", [*DAMAGE, "constants"])
def test_without_a_whole_version_the_job_does_not_begin(tmp_path: Path, how: str) -> None:
    damage(write(tmp_path, 8, 120), how)
    with pytest.raises(ConfigError, match="none that the job can go on from") as caught:
        persisted.find(JOB, str(tmp_path))
    assert "another persist_dir" in str(caught.value)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (replace(JOB, nodes=3), "it has 2 ranks, this job 3"),
        (replace(JOB, entrypoint=["train.py", "--lr", "0.2"]), "script and its arguments is train.py --lr 0.2, there"),
        (replace(JOB, entrypoint=["other.py"]), "there it was train.py --lr 0.1"),
        (replace(JOB, hash_seed="7"), "PYTHONHASHSEED is 7, there it was 0"),
    ],
)
def test_another_job_is_refused(tmp_path: Path, job: JobSpec, words: str) -> None:
    write(tmp_path, 8, 120)
    with pytest.raises(ConfigError) as caught:
        persisted.find(job, str(tmp_path))
    assert words in str(caught.value) and "another persist_dir" in str(caught.value)


def test_the_same_ranks_on_other_nodes_are_welcome(tmp_path: Path) -> None:
    write(tmp_path, 8, 120)
    assert persisted.find(replace(JOB, nodes=1, nproc_per_node=2), str(tmp_path)).usable


def test_a_script_that_has_changed_is_mentioned(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print(1)")
    job = replace(JOB, entrypoint=[str(script)])
    write(tmp_path, 8, 120, line=persisted.line_of(job))
    assert persisted.find(job, str(tmp_path)).notes == []
    script.write_text("print(2)")
    (note,) = persisted.find(job, str(tmp_path)).notes
    assert note.startswith("since version-00000008-120 was written: version of the script")
