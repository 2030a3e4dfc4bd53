"""What a Megatron user is told when a count of theirs cannot be put back, and that the advice works: with kills, as the
uninterrupted training, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ff_megatron.remedies import OF_OWN_LOOP, OF_PRETRAIN
from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted

FOLDER = Path(__file__).parents[1] / "megatron"
PRETRAIN, OWN = str(FOLDER / "counts.py"), str(FOLDER / "own_script.py")
EXTRA = {PRETRAIN: ("--bf16", "--use-distributed-optimizer"), OWN: ()}
SWITCH = {PRETRAIN: ("--ff-failover",), OWN: ()}
BOTH = pytest.mark.parametrize("script", [pytest.param(PRETRAIN, id="pretrain"), pytest.param(OWN, id="own")])
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(out: Path, script: str, way: str, more: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> Job:
    words = [script, "--way", way, *EXTRA[script], "--result", str(out / "result.json"), *SWITCH[script], *more]
    kills = injections("1 4 backward", "0 7 after-step")
    return fftrain(out, words, "--emulate-nodes", "2", "--spares", "1", *kills, *options, ranks=2, timeout_s=280)


def goes_on(job: Job, script: str, way: str) -> None:
    words = ("--way", way, *EXTRA[script])
    wanted = results(uninterrupted(script, words, lambda folder: ("--result", str(folder / "result.json")), 2), 2)
    assert_same(job, wanted)
    assert len(job.of("failover")) == 2


@BOTH
@pytest.mark.parametrize("way", ["registered", "known"])
def test_counts_that_are_kept_as_the_advice_is(tmp_path: Path, script: str, way: str) -> None:
    goes_on(run(tmp_path, script, way), script, way)


@BOTH
def test_a_count_that_cannot_be_put_back_is_refused_in_the_frameworks_words(tmp_path: Path, script: str) -> None:
    job = run(tmp_path, script, "idle")
    assert job.code != 0 and "rank 1 cannot go on from version 3: variables of its script" in job.stderr
    advice = OF_PRETRAIN if script == PRETRAIN else OF_OWN_LOOP
    assert f"or compute them from {advice.counter}. If they decide nothing, {advice.unsaved}" in job.stderr
    assert "ff_deepspeed" not in job.stderr and "engine" not in job.stderr


def ignored(tmp_path: Path, script: str, way: str) -> Job:
    """With what the refusal names for variables that decide nothing."""
    file = tmp_path / "ff.json"
    file.write_text(json.dumps({"unsaved_variables": "ignore"}))
    options = () if script == PRETRAIN else ("--ff-config", str(file))
    more = tuple(OF_PRETRAIN.unsaved.split()[1:]) if script == PRETRAIN else ()
    return run(tmp_path / "job", script, way, more, options)


@BOTH
def test_one_that_decides_nothing_may_be_ignored(tmp_path: Path, script: str) -> None:
    goes_on(ignored(tmp_path, script, "idle"), script, "idle")


def test_one_that_decides_shows_in_the_loss(tmp_path: Path) -> None:
    job = ignored(tmp_path, PRETRAIN, "generator")
    assert job.code != 0 and "the loss differs" in job.stderr
    assert f"Compute it from {OF_PRETRAIN.counter}, or save the count: {OF_PRETRAIN.save}" in job.stderr
