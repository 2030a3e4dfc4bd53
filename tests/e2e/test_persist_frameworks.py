"""DeepSpeed's and Megatron's jobs lose their power and go on from their persist_dir: to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import test_megatron
from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted
from tests.e2e.test_deepspeed import ROOT, SCRIPT
from tests.e2e.test_persist import power_off

USUAL = str(ROOT / "tests" / "deepspeed" / "usual_script.py")
STAGE3 = str(ROOT / "tests" / "deepspeed" / "stage3_script.py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def config(name: str) -> str:
    return str(ROOT / "configs" / "deepspeed" / f"{name}.json")


EXACT = [SCRIPT, "--size", "tiny", "--steps", "60", "--deepspeed_config"]
TWO_EPOCHS = [USUAL, "--epochs", "2", "--steps", "60", "--config"]
CASES = {
    "exact loop, zero 1": [*EXACT, config("zero1_bf16")],
    "exact loop, zero 0": [*EXACT, config("zero0_bf16")],
    "exact loop, zero 2, workers": [*EXACT, config("zero2_bf16"), "--num-workers", "2", "--gas", "2"],
    "usual loop, zero 1": [*TWO_EPOCHS, config("zero1_bf16")],
}


def interrupted(place: Path, words: list[str], wanted: dict[int, Any], *kills: str) -> tuple[Job, Job]:
    """Started, all killed in the middle, started again, where `kills` happen. Both must give what is wanted."""
    (place / "ff.json").write_text(json.dumps({"persist_dir": str(place / "disk"), "persist_interval_s": 0.2}))
    options = ["--emulate-nodes", "2", "--spares", "1", "--ff-config", str(place / "ff.json")]
    ranks = len(wanted)
    first = fftrain(place / "first", words, *options, ranks=ranks, meanwhile=power_off(10), timeout_s=400)
    assert first.code < 0, first.stderr[-3000:]
    assert not list(place.glob("result*")), "the job was over before it was killed"
    second = fftrain(place / "second", words, *options, *injections(*kills), ranks=ranks, timeout_s=400)
    (event,) = second.of("resume")
    assert event["version"] >= 10
    same = Job(second.code, second.stderr, second.stdout, place, second.events)  # results are beside, not in its folder
    assert_same(same, wanted)
    return first, second


@pytest.mark.parametrize("name", CASES)
def test_a_job_of_deepspeed(tmp_path: Path, name: str) -> None:
    """A rank that dies later in the second start is replaced as ever."""
    script, *words = CASES[name]

    def places(folder: Path) -> list[str]:
        data = ["--data-cache", str(tmp_path / "data")] if script == SCRIPT else []
        return ["--result", str(folder / "result.json"), *data]

    wanted = results(uninterrupted(script, words, places, 2), 2)
    _, second = interrupted(tmp_path, [script, *words, *places(tmp_path)], wanted, "1 55 backward")
    assert len(second.of("failover")) == 2


MEGATRON = {
    "replicated": ("--bf16",),
    "zero, pipeline": ("--bf16", *test_megatron.ZERO, *test_megatron.PP2),
}


@pytest.mark.parametrize("name", MEGATRON)
def test_a_job_of_megatron(tmp_path: Path, name: str) -> None:
    extra = (*MEGATRON[name], "--train-iters", "60")
    script = test_megatron.SCRIPT
    wanted = results(uninterrupted(script, extra, lambda folder: ("--result", str(folder / "result.json"))))
    words = [*test_megatron.words(tmp_path, *extra), "--ff-failover"]
    interrupted(tmp_path, words, wanted)
