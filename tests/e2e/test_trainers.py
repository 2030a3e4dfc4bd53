"""Loops that belong to a library, with the real packages: Hugging Face's Trainer, and Accelerate; TRL and PyTorch
Lightning where they are installed, which the set-up leaves out (TRL needs 300 MB)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import Job, fftrain, uninterrupted

HERE = Path(__file__).parent
TRAINER = (str(HERE / "hf_trainer.py"), "--deepspeed", str(HERE / "hf_trainer.json"))
KEEPS = (str(HERE / "hf_keeps.py"), *TRAINER[1:])
ACCELERATE = (str(HERE / "accelerate_loop.py"), "--deepspeed_config", str(HERE / "accelerate_loop.json"))


def run(out: Path, script: tuple[str, ...], *words: str, kills: tuple[str, ...]) -> Job:
    injected = [word for kill in kills for word in ("--inject", f"kill {kill}")]
    return fftrain(out, [*script, *words, "--result", str(out / "result.json")], *injected, ranks=2)


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"result.rank{rank}.json").read_text()) for rank in range(2)]


def reference(script: tuple[str, ...], *words: str) -> Path:
    name, *arguments = script
    return uninterrupted(name, [*arguments, *words], lambda folder: ["--result", str(folder / "result.json")], ranks=2)


def same(out: Path, script: tuple[str, ...], *words: str, kills: tuple[str, ...]) -> Job:
    """With these kills everything that the script leaves is what it leaves under plain torchrun."""
    job = run(out, script, *words, kills=kills)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == len(kills)
    for ours, theirs in zip(results(out), results(reference(script, *words)), strict=True):
        for key, value in theirs.items():
            assert ours[key] == value, f"{key} differs"
    return job


# ---- Hugging Face's Trainer -----------------------------------------------------------------------------------------


def test_the_trainer_goes_on_anywhere(tmp_path: Path) -> None:
    """In the first epoch, at the begin of one (its evaluation and its checkpoint lie between), and after the last."""
    same(tmp_path, TRAINER, kills=("rank=1 iteration=3 at=after-step", "rank=0 iteration=5 at=forward"))


@pytest.mark.parametrize("words", [(), pytest.param(("--workers",), marks=pytest.mark.slow)])
def test_what_a_script_keeps_around_the_trainer(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Generators that loading shares with evaluations and losses; what callbacks set while a batch is fetched ahead."""
    same(tmp_path, KEEPS, *words, kills=("rank=1 iteration=4 at=backward", "rank=0 iteration=7 at=after-step"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        ("rank=0 iteration=1 at=forward", "rank=1 iteration=4 at=forward", "rank=0 iteration=9 at=forward"),
        ("rank=1 iteration=1 at=backward", "rank=0 iteration=4 at=backward", "rank=1 iteration=9 at=backward"),
        ("rank=0 iteration=3 at=step", "rank=1 iteration=6 at=step", "rank=0 iteration=8 at=step"),
        ("rank=0 iteration=6 at=after-step", "rank=0 iteration=7 at=after-step", "rank=1 iteration=10 at=step"),
        ("rank=0 iteration=10 at=after-step",),
    ],
    ids=["forward", "backward", "step", "after-step", "last"],
)
def test_the_trainer_goes_on_everywhere(tmp_path: Path, kills: tuple[str, ...]) -> None:
    same(tmp_path, TRAINER, kills=kills)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["--json-optimizer", "--best"])
def test_the_trainer_in_other_ways(tmp_path: Path, word: str) -> None:
    """Optimizer and schedule from the file; the best weights are loaded at the end."""
    same(tmp_path, TRAINER, word, kills=("rank=0 iteration=6 at=backward", "rank=1 iteration=10 at=after-step"))


@pytest.mark.slow
def test_a_trainer_that_was_itself_resumed_within_an_epoch(tmp_path: Path) -> None:
    words = "--steps", "16", "--resume", str(reference(TRAINER) / "hf" / "checkpoint-9")
    same(tmp_path, TRAINER, *words, kills=("rank=0 iteration=2 at=backward", "rank=1 iteration=5 at=after-step"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--own-loop", "hf_trainer.py:%d: OwnLoop._run_epoch() replaces the training loop of Hugging Face's Trainer"),
        ("--own-batches", "hf_trainer.py:%d: the batches of this Trainer come from no torch DataLoader"),
    ],
)
def test_a_trainer_whose_loop_cannot_be_entered_is_refused_before_training(
    tmp_path: Path, word: str, said: str
) -> None:
    job = run(tmp_path, TRAINER, word, kills=())
    assert job.code == 1 and not list((tmp_path / "hf").glob("checkpoint-*"))
    assert said % line_of(TRAINER[0], "trainer.train(") in job.stderr


def line_of(file: str, text: str) -> int:
    return next(number for number, line in enumerate(Path(file).read_text().splitlines(), 1) if line.startswith(text))


# ---- Accelerate -----------------------------------------------------------------------------------------------------


def test_accelerates_loop_goes_on_anywhere(tmp_path: Path) -> None:
    """Behind a pass that was left at a step, and behind one that was left within an accumulation."""
    same(tmp_path, ACCELERATE, kills=("rank=1 iteration=3 at=forward", "rank=0 iteration=5 at=after-step"))


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "stage"), [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_accelerates_loop_goes_on_everywhere(tmp_path: Path, accumulation: int, stage: int) -> None:
    words = ("--accumulation", str(accumulation), "--stage", str(stage))
    points = ("forward", "backward", "step", "after-step")
    for first in (0, 1):  # each point on each rank, in all epochs
        kills = tuple(f"rank={(n + first) % 2} iteration={2 + 3 * n} at={at}" for n, at in enumerate(points))
        same(tmp_path / f"kills{first}", ACCELERATE, *words, kills=kills)


@pytest.mark.slow
def test_accelerates_own_count_goes_back_with_an_iteration_of_the_exact_loop(tmp_path: Path) -> None:
    """And what lies between two loops is passed over: collectives, files."""
    same(tmp_path, ACCELERATE, "--exact", kills=("rank=1 iteration=2 at=backward", "rank=0 iteration=7 at=step"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "said"), [("--asks", "the loop asks its loader with next()"), ("--dispatch", "dispatch_batches=False")]
)
def test_a_loop_in_which_no_replacement_finds_its_place_is_refused_before_training(
    tmp_path: Path, word: str, said: str
) -> None:
    job = run(tmp_path, ACCELERATE, word, kills=())
    assert job.code == 1 and not job.of("commit")
    assert said in job.stderr and "accelerate_loop.py:" in job.stderr


# ---- what the set-up does not install -------------------------------------------------------------------------------


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed: pip install it")


TRL = (str(HERE / "trl_trainer.py"), "--deepspeed", str(HERE / "hf_trainer.json"))
LIGHTNING = (str(HERE / "lightning_fit.py"), "--config", str(HERE / "hf_trainer.json"))


@pytest.mark.slow
@needs("trl")
@pytest.mark.parametrize("words", ["sft", "sft --packed", pytest.param("sft --lora", marks=needs("peft")), "dpo"])
def test_trls_trainer_goes_on(tmp_path: Path, words: str) -> None:
    """Its own metrics are means over the steps between two entries of the log."""
    same(tmp_path, TRL, *words.split(), kills=("rank=1 iteration=3 at=after-step", "rank=0 iteration=6 at=backward"))


@pytest.mark.slow
@needs("trl")
def test_a_reference_model_under_zero3_is_refused_before_training_and_goes_on_under_zero2(tmp_path: Path) -> None:
    config = json.loads(Path(TRL[2]).read_text())
    for stage in (3, 2):
        config["zero_optimization"]["stage"] = stage
        (tmp_path / f"zero{stage}.json").write_text(json.dumps(config))
    script, words = TRL[0], ("dpo", "--deepspeed")
    job = run(tmp_path / "refused", (script, *words, str(tmp_path / "zero3.json")), kills=())
    assert job.code == 1 and not job.of("commit")
    assert "a second DeepSpeed engine, which is not trained, uses ZeRO-3" in job.stderr
    same(tmp_path, (script, *words, str(tmp_path / "zero2.json")), kills=("rank=0 iteration=4 at=forward",))


@pytest.mark.slow
@needs("trl")
def test_a_trainer_that_generates_what_it_learns_from_is_refused_before_training(tmp_path: Path) -> None:
    job = run(tmp_path, TRL, "grpo", kills=())
    assert job.code == 1 and not list((tmp_path / "trl").glob("checkpoint-*"))
    line = line_of(TRL[0], "trainer.train(")
    assert f"trl_trainer.py:{line}: what this Trainer gives to its model has neither the memory" in job.stderr


@pytest.mark.slow
@needs("pytorch_lightning")
def test_lightnings_loop_is_refused_before_training(tmp_path: Path) -> None:
    job = run(tmp_path, LIGHTNING, kills=())
    assert job.code == 1 and not job.of("commit")
    line = line_of(LIGHTNING[0], "    trainer.fit(")
    assert f"lightning_fit.py:{line}: the training loop is PyTorch Lightning's" in job.stderr


@pytest.mark.slow
@needs("pytorch_lightning")
def test_a_lightning_module_goes_on_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    """What the refusal says."""
    same(tmp_path, LIGHTNING, "--own-loop", kills=("rank=0 iteration=2 at=backward", "rank=1 iteration=5 at=step"))
