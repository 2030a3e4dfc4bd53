"""Whole jobs in which the interval changes whenever W rises, with kills in between: to the bit as without kills."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted
from tests.e2e.test_deepspeed import SCRIPT, arguments
from tests.e2e.test_megatron import EVALUATION, ZERO
from tests.e2e.test_megatron import SCRIPT as MEGATRON
from tests.e2e.test_unseen import SCRIPT as UNMODIFIED
from tests.e2e.test_unseen import results as results_of
from tests.e2e.test_unseen import right

FORCED = str(Path(__file__).with_name("forced_intervals.py"))
KILLS = ("1 4 step", "0 9 backward", "1 12 copying")


def committed(job: Job) -> dict[int, list[int]]:
    """epoch -> W, in order."""
    found: dict[int, list[int]] = {}
    for event in job.of("commit"):
        found.setdefault(event["epoch"], []).append(event["W"])
    return found


@pytest.mark.timeout(300)
def test_a_deepspeed_job_with_a_forced_sequence_and_kills(tmp_path: Path) -> None:
    """ZeRO 1 over two epochs, with what "AdamW" in the configuration makes: FusedAdam."""

    def places(folder: Path) -> list[str]:
        return ["--result", str(folder / "result.json"), "--data-cache", str(tmp_path / "data")]

    extra = ("--epochs", "2", "--optimizer", "config", "--sequence", "16")
    words, out = arguments("zero1_bf16_adamw", extra), tmp_path / "job"
    wanted = results(uninterrupted(SCRIPT, words, places, 2), 2)
    job = fftrain(
        out, [SCRIPT, *words, *places(out)], "--emulate-nodes", "2", *injections(*KILLS), ranks=2,
        launcher=(FORCED, "3,1,4,2"),
    )  # fmt: skip
    assert_same(job, wanted)
    failovers: list[dict[str, Any]] = job.of("failover")
    assert [event["dead"] for event in failovers] == [[1], [0], [1]]
    by_epoch = committed(job)
    gaps = {b - a for versions in by_epoch.values() for a, b in itertools.pairwise(versions)}
    assert len(gaps) >= 3, by_epoch
    for event in failovers:  # from a version that was copied, and no version is copied in another one's turn
        assert by_epoch[event["epoch"]][0] == event["v_star"]
    assert any(killed - event["v_star"] > 1 for killed, event in zip((4, 9, 12), failovers, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", [("--scheduler", "--second"), ("--clamp", "--edited")])
def test_a_loop_that_knows_nothing_of_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    kills = injections("1 4 backward", "0 8 after-step")
    job = fftrain(
        tmp_path, [UNMODIFIED, *words, "--result", str(tmp_path / "result.json")], *kills, ranks=2,
        launcher=(FORCED, "3,1,4,2"),
    )  # fmt: skip
    assert job.code == 0, job.stderr[-3000:]
    assert len(job.of("failover")) == 2
    assert results_of(tmp_path) == right(*(word for word in words if word != "--edited"))


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "extra", [("--bf16", *ZERO, *EVALUATION), ("--bf16", *ZERO, "--pipeline-model-parallel-size", "2")]
)
def test_a_megatron_job(tmp_path: Path, extra: tuple[str, ...]) -> None:
    wanted = results(uninterrupted(MEGATRON, extra, lambda folder: ("--result", str(folder / "result.json"))))
    script = [MEGATRON, "--result", str(tmp_path / "result.json"), *extra, "--ff-failover"]
    job = fftrain(
        tmp_path, script, "--emulate-nodes", "2", "--spares", "1", *injections("2 4 backward", "0 9 step"),
        launcher=(FORCED, "3,1,4,2"),
    )  # fmt: skip
    assert_same(job, wanted)
    assert len(job.of("failover")) == 2
