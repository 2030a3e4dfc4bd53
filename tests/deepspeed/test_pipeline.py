"""DeepSpeed's PipelineEngine: ranks of every stage are killed, within a call and between a send and its receive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import plain
from tests.e2e.compare import injections, results
from tests.e2e.jobs import Job, fftrain, uninterrupted

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "tests" / "deepspeed" / "pipe_script.py")
CONFIG = json.loads((ROOT / "configs" / "deepspeed" / "pipeline.json").read_text())
STEPS = 8

KINDS: dict[str, dict[str, Any]] = {
    "zero0_fp32": {"zero_optimization": {"stage": 0}, "bf16": {"enabled": False}},
    "zero0_bf16": {"zero_optimization": {"stage": 0}},  # BF16_Optimizer
    "zero1_fp32": {"bf16": {"enabled": False}},
    "zero1_bf16": {},
    "zero1_accumulates_fp32": {"data_types": {"grad_accum_dtype": "fp32"}},  # BF16_Optimizer
}


def job_of(
    out: Path, kind: str, words: list[str], *, ranks: int, kills: tuple[str, ...] = (), dies: tuple[str, ...] = ()
) -> tuple[Job, dict[int, Any]]:
    """A job with `kills` and `dies` (see the script's --die), and the results of the uninterrupted training."""
    alone = reference(kind, words, ranks)
    script = [SCRIPT, *arguments(kind, words), "--result", str(out / "result.json")]
    script += ["--die", *dies] if dies else []
    nodes = "2" if ranks % 2 == 0 else str(ranks)
    job = fftrain(out, script, "--emulate-nodes", nodes, *injections(*kills), ranks=ranks, timeout_s=560)
    return job, results(alone, ranks)


def reference(kind: str, words: list[str], ranks: int) -> Path:
    """The folder of the uninterrupted training."""
    return uninterrupted(
        SCRIPT, arguments(kind, words), lambda folder: ["--result", str(folder / "result.json")], ranks
    )  # fmt: skip


def arguments(kind: str, words: list[str]) -> list[str]:
    return ["--config", json.dumps(CONFIG | KINDS[kind]), "--steps", str(STEPS), *words]


def assert_same(job: Job, wanted: dict[int, Any], deaths: int) -> None:
    """Every rank ended with what `wanted` says, the history of losses and scores included."""
    assert job.code == 0, job.stderr[-6000:]
    assert results(job.out, len(wanted)) == wanted
    assert len(job.of("failover")) == deaths


def test_every_stage_may_die(tmp_path: Path) -> None:
    """Two stages, of which nobody else has anything; a message is half sent when the first one dies."""
    kills = ("1 2 backward", "0 6 after-step")
    assert_same(*job_of(tmp_path, "zero1_bf16", ["--tied"], ranks=2, kills=kills, dies=("send 0 4",)), 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("kills", "dies"),
    [
        (("0 2 forward", "3 4 backward", "1 6 step", "2 7 after-step"), ()),
        ((), ("send 0 2", "recv 2 3", "send 3 5", "loss 1 7")),  # each rank once: a replacement does not die again
    ],
    ids=["points", "messages"],
)
def test_two_stages_on_two_ranks_each(kind: str, kills: tuple[str, ...], dies: tuple[str, ...], tmp_path: Path) -> None:
    job, wanted = job_of(tmp_path, kind, ["--tied", "--eval"], ranks=4, kills=kills, dies=dies)
    assert_same(job, wanted, len(kills) + len(dies))


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["own", "epochs", "while", "generator", "exact"])
def test_loops(loop: str, tmp_path: Path) -> None:
    words = ["--loop", loop, "--eval"]
    kills = ("0 2 backward", "1 4 step", "0 5 after-step", "1 8 forward")
    assert_same(*job_of(tmp_path, "zero1_bf16", words, ranks=2, kills=kills), 4)


@pytest.mark.slow
def test_checkpoints_of_a_pipeline_are_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """A rank dies within a save, one in the iteration before it, one in that behind it."""
    words = ["--loop", "while", "--tied", "--save"]
    kills, dies = ("2 6 after-step", "0 7 step"), ("save 1 4",)
    job, wanted = job_of(tmp_path, "zero1_bf16", words, ranks=4, kills=kills, dies=dies)
    assert_same(job, wanted, 3)
    alone = reference("zero1_bf16", words, ranks=4)
    assert contents(tmp_path / "saved") == contents(alone / "saved")


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 10
    return {str(path.relative_to(folder)): plain.digest(path) for path in files if path.suffix == ".pt"}


@pytest.mark.slow
def test_three_stages_and_activation_checkpointing(tmp_path: Path) -> None:
    words = ["--stages", "3", "--checkpoint", "--tied", "--dynamic"]
    kills = ("2 3 after-step", "0 5 step", "1 7 backward")
    assert_same(*job_of(tmp_path, "zero1_fp32", words, ranks=3, kills=kills, dies=("recv 1 2",)), 4)


@pytest.mark.slow
def test_nobody_else_has_a_stage_without_zero(tmp_path: Path) -> None:
    kills = ("0 2 step", "0 5 after-step")
    assert_same(*job_of(tmp_path, "zero0_fp32", ["--tied", "--eval"], ranks=2, kills=kills, dies=("eval 1 7",)), 3)
