"""Loops that belong to a library, with the real packages: Hugging Face's Trainer, and Accelerate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import Job, fftrain, uninterrupted

HERE = Path(__file__).parent
TRAINER = (str(HERE / "hf_trainer.py"), "--deepspeed", str(HERE / "hf_trainer.json"))
ACCELERATE = (str(HERE / "accelerate_loop.py"), "--deepspeed_config", str(HERE / "accelerate_loop.json"))


def run(out: Path, script: tuple[str, ...], *words: str, kills: tuple[str, ...]) -> Job:
    injected = [word for kill in kills for word in ("--inject", f"kill {kill}")]
    return fftrain(out, [*script, *words, "--result", str(out / "result.json")], *injected, ranks=2)


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"result.rank{rank}.json").read_text()) for rank in range(2)]


def same(out: Path, script: tuple[str, ...], kills: tuple[str, ...]) -> None:
    job = run(out, script, kills=kills)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == len(kills)
    name, *words = script
    wanted = results(uninterrupted(name, words, lambda folder: ["--result", str(folder / "result.json")], ranks=2))
    for ours, theirs in zip(results(out), wanted, strict=True):
        for key, value in theirs.items():
            assert ours[key] == value, f"{key} differs"
    assert wanted[0]["steps"] == 10


def test_the_trainer_goes_on_within_an_epoch(tmp_path: Path) -> None:
    same(tmp_path, TRAINER, ("rank=0 iteration=7 at=backward",))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        ("rank=1 iteration=5 at=forward", "rank=0 iteration=6 at=after-step"),
        ("rank=1 iteration=1 at=backward", "rank=0 iteration=4 at=step"),
        ("rank=0 iteration=10 at=after-step",),
    ],
    ids=["begin-of-epoch", "end-of-epoch", "last"],
)
def test_the_trainer_goes_on_anywhere(tmp_path: Path, kills: tuple[str, ...]) -> None:
    same(tmp_path, TRAINER, kills)


def test_a_trainer_with_a_loop_of_its_own_is_refused_before_training(tmp_path: Path) -> None:
    job = run(tmp_path, TRAINER, "--own-loop", kills=())
    assert job.code == 1 and not list((tmp_path / "hf").glob("checkpoint-*"))
    assert "OwnLoop._run_epoch() replaces the training loop of Hugging Face's Trainer" in job.stderr


def test_accelerates_own_count_goes_back_with_an_iteration(tmp_path: Path) -> None:
    same(tmp_path, ACCELERATE, ("rank=1 iteration=4 at=backward",))
