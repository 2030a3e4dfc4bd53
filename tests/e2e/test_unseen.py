"""What a script does beside the engine: state that is found, weights that are edited, batches that cannot come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.jobs import Job, fftrain, uninterrupted

SCRIPT = str(Path(__file__).with_name("does_more.py"))
EPOCHS = str(Path(__file__).with_name("epochs.py"))
AROUND = str(Path(__file__).with_name("around.py"))
SHARES = str(Path(__file__).with_name("shares.py"))
EVALUATES = str(Path(__file__).with_name("evaluates.py"))
REMEMBERS = str(Path(__file__).with_name("remembers.py"))
KILLS = ("--inject", "kill rank=1 iteration=4 at=backward", "--inject", "kill rank=0 iteration=7 at=after-step")


def run(out: Path, *words: str, kills: tuple[str, ...] = KILLS, script: str = SCRIPT) -> Job:
    return fftrain(out, [script, *words, "--result", str(out / "result.json")], *kills, ranks=2)


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"result.rank{rank}.json").read_text()) for rank in range(2)]


def right(*words: str, script: str = SCRIPT) -> list[dict[str, Any]]:
    return results(uninterrupted(script, words, lambda folder: ["--result", str(folder / "result.json")], ranks=2))


def test_a_scheduler_a_second_engine_and_a_teacher_that_nobody_named(tmp_path: Path) -> None:
    words = ("--scheduler", "--second", "--teacher", "--counts")
    job = run(tmp_path, *words)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path) == right(*words) and results(tmp_path)[0]["steps"] == 10


def test_edited_weights_are_refused_by_name_and_the_remedy_works(tmp_path: Path) -> None:
    refused = run(tmp_path / "refused", "--clamp", kills=())
    assert refused.code == 1 and not refused.of("failover")
    assert "the script wrote into 0.weight, 0.bias, 2.weight" in refused.stderr
    assert 'Set "weights_edited": true in the "ff_failover" block' in refused.stderr
    job = run(tmp_path / "remedy", "--clamp", "--edited")
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path / "remedy") == right("--clamp")


def test_more_variables_than_can_be_looked_at_are_refused_and_the_remedies_work(tmp_path: Path) -> None:
    refused = run(tmp_path / "refused", "--tables", kills=())
    assert refused.code == 1 and not refused.of("commit"), refused.stderr[-3000:]
    assert "more variables and attributes than can be looked at" in refused.stderr
    held = run(tmp_path / "held", "--tables", "--held")
    assert held.code == 0 and len(held.of("failover")) == 2, held.stderr[-3000:]
    assert results(tmp_path / "held") == right("--tables", "--held")
    allowed = run(tmp_path / "allowed", "--tables", "--ignored", kills=())
    assert allowed.code == 0, allowed.stderr[-3000:]
    assert "beyond the first 2000 (table_" in allowed.stderr
    assert results(tmp_path / "allowed") == right("--tables", "--held")


def test_other_batches_are_not_trained_on(tmp_path: Path) -> None:
    job = run(tmp_path, "--drift")
    assert job.code == 1, job.stderr[-3000:]
    assert "rank 1" in job.stderr and "not the one that the dead rank had trained on" in job.stderr


def test_what_a_script_remembers_in_its_variables(tmp_path: Path) -> None:
    job = run(tmp_path, script=REMEMBERS)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path) == right(script=REMEMBERS) and results(tmp_path)[0]["calls"] == 12


@pytest.mark.slow
def test_what_a_script_remembers_in_the_usual_loop(tmp_path: Path) -> None:
    job = run(tmp_path, "--usual", script=REMEMBERS)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path) == right("--usual", script=REMEMBERS)


@pytest.mark.parametrize("words", [(), pytest.param(("--usual",), marks=pytest.mark.slow)])
def test_what_a_script_of_epochs_keeps_in_objects_of_its_own(tmp_path: Path, words: tuple[str, ...]) -> None:
    kills = ("--inject", "kill rank=1 iteration=4 at=backward", "--inject", "kill rank=0 iteration=9 at=after-step")
    job = run(tmp_path, *words, kills=kills, script=EPOCHS)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path) == right(*words, script=EPOCHS) and results(tmp_path)[0]["calls"] == 10


@pytest.mark.parametrize("words", [("--chooses",), pytest.param(("--chooses", "--usual"), marks=pytest.mark.slow)])
def test_what_a_script_has_at_two_places_and_gives_to_its_data(tmp_path: Path, words: tuple[str, ...]) -> None:
    kills = ("--inject", "kill rank=1 iteration=4 at=backward", "--inject", "kill rank=0 iteration=9 at=after-step")
    job = run(tmp_path, *words, kills=kills, script=SHARES)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path) == right(*words, script=SHARES) and results(tmp_path)[0]["calls"] == 12


@pytest.mark.parametrize(
    "words",
    [
        (),
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (("--usual",), ("--between",), ("--usual", "--between"))
        ),
    ],
)
def test_an_evaluation_in_processes_that_are_kept(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Its loader draws a seed once. The first death voids the iteration in which it does."""
    kills = ("--inject", "kill rank=1 iteration=1 at=after-step", "--inject", "kill rank=0 iteration=9 at=after-step")
    job = run(tmp_path, *words, kills=kills, script=EVALUATES)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path) == right(*words, script=EVALUATES)


@pytest.mark.slow
def test_a_module_that_is_replaced_while_training_is_said_and_refused(tmp_path: Path) -> None:
    job = run(tmp_path, "--swaps", script=SHARES, kills=("--inject", "kill rank=1 iteration=5 at=backward"))
    assert job.code == 1, job.stderr[-3000:]
    said = "the script has replaced drop of its model while it trains"
    assert job.stderr.index(said) < job.stderr.index("DifferenceError")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--zip", "around the batches of this loop is a range_iterator whose place cannot be set after a failure"),
        ("--large", "variables of its script are not what they were then: table (Tensor: it cannot be saved)"),
    ],
)
def test_what_cannot_be_put_back_ends_the_job_in_words(tmp_path: Path, word: str, said: str) -> None:
    # In an iteration whose batch does not depend on the number: that would be told first.
    job = run(tmp_path, word, kills=("--inject", "kill rank=1 iteration=5 at=backward"), script=REMEMBERS)
    assert job.code == 1 and said in job.stderr, job.stderr[-3000:]


@pytest.mark.parametrize(
    "mode", ["epochs", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("forever", "islice", "zip"))]
)
def test_the_place_of_a_usual_loop_that_no_variable_shows(tmp_path: Path, mode: str) -> None:
    job = run(tmp_path, mode, script=AROUND, kills=("--inject", "kill rank=1 iteration=6 at=backward"))
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 1
    assert results(tmp_path) == right(mode, script=AROUND)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["thread", "reader"])
def test_a_thread_that_trains_and_one_that_reads_ahead(tmp_path: Path, mode: str) -> None:
    kills = ("--inject", "kill rank=1 iteration=6 at=backward", "--inject", "kill rank=0 iteration=8 at=after-step")
    job = run(tmp_path, mode, script=AROUND, kills=kills)
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results(tmp_path) == right(mode, script=AROUND)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("cycle", "itertools.cycle() goes over the data loader"),
        ("past-the-engine", "engine.step() comes without an engine.backward(loss)"),
    ],
)
def test_what_nobody_could_do_again_is_refused_before_training(tmp_path: Path, mode: str, said: str) -> None:
    job = run(tmp_path, mode, script=AROUND, kills=())
    assert job.code == 1 and said in job.stderr, job.stderr[-3000:]
    assert "around.py:" in job.stderr
