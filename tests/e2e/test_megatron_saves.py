"""Checkpoints of whole Megatron jobs that lose ranks: every one that is named is whole, and of one iteration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, start, uninterrupted

HERE = Path(__file__).parents[1] / "megatron"
SCRIPT = str(HERE / "train_tiny.py")
LAYOUT = ("--bf16", "--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather")
FORMAT = ("--ckpt-format", "torch_dist")
BACKGROUND = ("--async-save", "--use-persistent-ckpt-worker")
OF_EACH_SAVE = ("--async-save",)  # a process that is forked for it
slow = pytest.mark.slow


def digests(iterations: list[int], *checkpoints: Path) -> list[list[Any]]:
    """Of every tensor of these iterations, in each of these directories."""
    folders = [[str(where / f"iter_{iteration:07d}") for iteration in iterations] for where in checkpoints]
    command = [sys.executable, str(HERE / "checkpoint.py"), *(folder for inside in folders for folder in inside)]
    process = start(command, SCRIPT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    found = json.loads(out.splitlines()[-1])
    return [[found[folder] for folder in inside] for inside in folders]


def whole(checkpoints: Path) -> list[int]:
    """Iterations whose folder is there, all of them complete."""
    folders = sorted(checkpoints.glob("iter_*"))
    assert all((folder / "metadata.json").exists() for folder in folders), folders
    return [int(folder.name[5:]) for folder in folders]


def latest(checkpoints: Path) -> int:
    return int((checkpoints / "latest_checkpointed_iteration.txt").read_text())


def run(
    tmp_path: Path, layout: tuple[str, ...], extra: tuple[str, ...], *kills: str, ranks: int = 2, every: int = 1
) -> Job:
    """The job with `kills`, and with `extra` arguments; every checkpoint that it leaves is the uninterrupted one's.

    every: which iterations the uninterrupted one saves.
    """
    words = (*layout, *FORMAT)
    reference = uninterrupted(
        SCRIPT,
        (*words, "--save-interval", str(every)),
        lambda folder: ("--result", str(folder / "result.json"), "--save", str(folder / "checkpoints")),
        ranks,
    )
    out = tmp_path / "job"
    saving = ("--save", str(out / "checkpoints"), *extra)
    job = fftrain(
        out, [SCRIPT, "--result", str(out / "result.json"), *words, *saving, "--ff-failover"], "--emulate-nodes", "2",
        *injections(*kills), ranks=ranks, timeout_s=400,
    )  # fmt: skip
    assert_same(job, results(reference, ranks))
    for folder in filter(Path.exists, (out / "checkpoints", out / "checkpoints" / "non_persistent")):
        found = whole(folder)
        saved, right = digests(found, folder, reference / "checkpoints")
        assert saved == right
    return job


@pytest.mark.timeout(700)
@pytest.mark.parametrize(
    ("writers", "held", "killed"),
    [
        pytest.param(OF_EACH_SAVE, ("0",), "1", id="survivor-still-writes"),
        pytest.param(BACKGROUND, ("0",), "1", id="survivor-still-writes-kept-worker", marks=slow),
        pytest.param(BACKGROUND, ("1",), "1", id="survivor-has-written", marks=slow),
        pytest.param(BACKGROUND, ("0", "1"), "0", id="rank-0-dies", marks=slow),
    ],
)
def test_a_save_that_is_under_way_when_a_rank_dies(
    tmp_path: Path, writers: tuple[str, ...], held: tuple[str, ...], killed: str
) -> None:
    """The dead rank's part of iteration 5 is gone. What all go on from is saved instead."""
    extra = (*writers, "--save-interval", "5", "--hold-save", "5", *held)
    job = run(tmp_path, LAYOUT, extra, f"{killed} 7 backward", every=2)
    checkpoints = job.out / "checkpoints"
    assert len(job.of("failover")) == 1
    assert whole(checkpoints) == [6, 10] and latest(checkpoints) == 10
    assert [event["version"] for event in job.of("persisted")][-1] == 10
    assert "while the checkpoint of iteration 5 was being written; iteration 6 is saved instead" in job.stderr


@slow
@pytest.mark.timeout(700)
def test_a_rank_dies_while_all_wait_for_the_last_save(tmp_path: Path) -> None:
    extra = (*BACKGROUND, "--save-interval", "5", "--hold-save", "10", "0", "--die-finalizing", "1")
    job = run(tmp_path, LAYOUT, extra)
    assert len(job.of("failover")) == 1
    assert whole(job.out / "checkpoints") == [5, 10] and latest(job.out / "checkpoints") == 10


@slow
@pytest.mark.timeout(900)
def test_temporary_saves_retention_and_what_saves_find_out(tmp_path: Path) -> None:
    """A temporary save is under way; what was found out for later saves is asked for again on all ranks."""
    kept = ("--save-interval", "4", "--save-retain-interval", "8")
    temporary = ("--non-persistent-save-interval", "3", "--non-persistent-ckpt-type", "global")
    found_out = ("--ckpt-fully-parallel-save", "--ckpt-assume-constant-structure")
    extra = (*BACKGROUND, *kept, *temporary, *found_out, "--hold-save", "6", "0")
    job = run(tmp_path, LAYOUT, extra, "1 7 backward")
    checkpoints = job.out / "checkpoints"
    assert whole(checkpoints) == [8, 10] and latest(checkpoints) == 10
    # Megatron removes older temporary ones in a thread: without a failure 6 may be left or not, too.
    assert whole(checkpoints / "non_persistent") in ([9], [6, 9]) and latest(checkpoints / "non_persistent") == 9
    assert "checkpoint of iteration 6 was being written; it is saved again" in job.stderr
