"""Loops of scripts' own on megatron-core: ff_megatron.protect(), with kills; as the uninterrupted training, to the
bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted

SCRIPT = str(Path(__file__).parents[1] / "megatron" / "own_script.py")
slow = pytest.mark.slow


def run(out: Path, words: tuple[str, ...], *kills: str, options: tuple[str, ...] = ()) -> Job:
    script = [SCRIPT, *words, "--result", str(out / "result.json")]
    options = ("--emulate-nodes", "2", "--spares", "1", *injections(*kills), *options)
    return fftrain(out, script, *options, ranks=2, timeout_s=280)


@pytest.mark.parametrize(
    ("words", "kills"),
    [
        (("--bf16", "--overlap", "--skip", "5"), ("1 3 backward", "0 8 after-step")),
        pytest.param(("--make-data", "--loops", "2"), ("0 4 step", "1 15 forward"), marks=slow),
        pytest.param(("--bf16", "--stages", "2"), ("0 3 forward", "1 6 backward"), marks=slow),
        pytest.param(("--mixed",), ("0 3 forward", "1 7 after-step"), marks=slow),
        pytest.param((), ("0 1 forward", "1 10 after-step"), marks=slow),
    ],
)
def test_goes_on_to_the_bit(tmp_path: Path, words: tuple[str, ...], kills: tuple[str, ...]) -> None:
    wanted = results(uninterrupted(SCRIPT, words, lambda folder: ("--result", str(folder / "result.json")), 2), 2)
    job = run(tmp_path, words, *kills)
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills)


@slow
@pytest.mark.parametrize(("behind", "more"), [(0, ()), (1, ()), (0, ("--breaks",))])
def test_a_death_behind_a_loop(tmp_path: Path, behind: int, more: tuple[str, ...]) -> None:
    """Between two, and behind the last one: both begin again at its end, or do its last iteration again. And in the
    second one, in its first iteration or later."""
    words = ("--loops", "2", *more)
    wanted = results(uninterrupted(SCRIPT, words, lambda folder: ("--result", str(folder / "result.json")), 2), 2)
    job = run(tmp_path, (*words, "--die", str(1 - behind), str(behind)), "0 12 forward")
    assert_same(job, wanted)
    order = [[0], [0, 1]] if behind else [[0, 1], [0]]
    assert [event["newcomers"] for event in job.of("failover")] == order
    if more:
        assert job.of("failover")[0]["v_star"] == 6, "the one before the loop's last"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fp8", "hybrid"), "--fp8-format: fp8 parameters and their scales are not copied yet"),
        (("--unprotected",), "without ff_megatron.protect(model, optimizer, scheduler, data=[...]) before it"),
        (("--forget-data",), "is taken from a generator that cannot go back after a failure. Give protect() the data"),
    ],
)
def test_what_is_refused_before_training(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    job = run(tmp_path, words)
    assert job.code != 0 and said in job.stderr, job.stderr[-3000:]
    assert not job.of("commit") or job.of("commit")[-1]["W"] == 0  # nothing was trained
    assert not job.of("failover")


def test_settings_that_a_loop_of_ones_own_has_nothing_for(tmp_path: Path) -> None:
    file = tmp_path / "ff.json"
    file.write_text(json.dumps({"weights_edited": True, "persist": {"directory": str(tmp_path), "period": 2}}))
    job = run(tmp_path / "job", (), options=("--ff-config", str(file)))
    assert job.code != 0 and not job.of("failover")
    assert '"weights_edited": weights in a low precision come back' in job.stderr
    assert '"persist": save checkpoints in the loop' in job.stderr
