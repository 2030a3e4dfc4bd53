"""Megatron-LM's own pretrain_gpt.py, unmodified, loses ranks and ends with the bits of the uninterrupted run.

Megatron-LM is not on PyPI: MEGATRON_LM_PATH names a checkout of tag core_v0.16.1, with its datasets' helpers_cpp
built, or copied from the wheel of megatron-core. Its script also imports six, regex, triton and yaml.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.e2e import jobs
from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import fftrain, torchrun

SCRIPT = str(Path(__file__).parents[1] / "megatron" / "pretrain_real.py")
CONFIG = Path(__file__).parents[2] / "configs" / "megatron" / "cpu_small.args"
CHECKOUT = os.environ.get("MEGATRON_LM_PATH")
LACKING = [name for name in ("six", "regex", "triton", "yaml") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="MEGATRON_LM_PATH names no checkout of Megatron-LM (core_v0.16.1)"),
    pytest.mark.skipif(bool(LACKING), reason=f"pretrain_gpt.py imports {', '.join(LACKING)}: not installed"),
]
OVERLAP = ("--overlap-grad-reduce", "--overlap-param-gather")
SMALL = ("--train-iters", "8", "--lr-decay-iters", "8", "--eval-interval", "4")


def words(out: Path, *extra: str) -> list[str]:
    config = [word for word in CONFIG.read_text().split() if word != "--ff-failover"]
    return [SCRIPT, "--result", str(out / "result.json"), *config, *SMALL, *extra]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("extra", "kills"),
    [
        pytest.param((), ("1 3 backward", "0 6 after-step"), id="dp4"),
        pytest.param(
            ("--pipeline-model-parallel-size", "2", *OVERLAP, "--log-interval", "3"),
            ("2 3 backward", "0 5 forward", "1 9 forward"),
            id="pp2-dp2-overlap-evaluations",
        ),
    ],
)  # fmt: skip
def test_pretrain_gpt_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...], kills: tuple[str, ...]
) -> None:
    monkeypatch.setitem(jobs.ENV, "TORCHDYNAMO_DISABLE", "1")
    reference, out = tmp_path / "reference", tmp_path / "job"
    done = torchrun(words(reference, *extra), timeout_s=500)
    assert done.returncode == 0, done.stderr[-3000:]
    job = fftrain(
        out, [*words(out, *extra), "--ff-failover"], "--emulate-nodes", "2", "--spares", "1", *injections(*kills),
        timeout_s=500,
    )  # fmt: skip
    assert_same(job, results(reference))
    assert len(job.of("failover")) == len(kills)
