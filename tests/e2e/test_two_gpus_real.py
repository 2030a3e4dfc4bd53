"""Megatron-LM's own pretrain_gpt.py over NCCL with configs/megatron/two_gpus.args and fewer iterations.

MEGATRON_LM_PATH: as in test_megatron_real.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e import jobs
from tests.e2e.compare import assert_same, injections, results
from tests.e2e.gpu_jobs import GPUS, NODES, ROOT, set_before_the_job, show
from tests.e2e.jobs import fftrain, torchrun
from tests.e2e.test_megatron_real import CHECKOUT, LACKING, SCRIPT

CONFIG = ROOT / "configs" / "megatron" / "two_gpus.args"
FEWER = (
    "--train-iters", "14", "--lr-decay-iters", "14", "--lr-warmup-iters", "2", "--log-interval", "1",
    "--eval-interval", "6", "--eval-iters", "2",
)  # fmt: skip
pytestmark = [
    pytest.mark.skipif(GPUS < 2, reason=f"NCCL with survivors needs 2 CUDA devices, torch sees {GPUS}"),
    pytest.mark.skipif(not CHECKOUT, reason="MEGATRON_LM_PATH names no checkout of Megatron-LM"),
    pytest.mark.skipif(bool(LACKING), reason=f"pretrain_gpt.py imports {', '.join(LACKING)}: not installed"),
    pytest.mark.timeout(600),
]
LINE = re.compile(r"(iteration +\d+/.*?)\| elapsed time per iteration \(ms\): [\d.]+ (\|.*)|(validation loss at .*)")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_before_the_job(monkeypatch)
    monkeypatch.setitem(jobs.ENV, "CUDA_DEVICE_MAX_CONNECTIONS", "1")


def test_pretrain_gpt(tmp_path: Path) -> None:
    """Bits are those of the uninterrupted run, and so is the log, but for times."""
    config = [word for word in CONFIG.read_text().split() if word != "--ff-failover"]

    def words(out: Path, *extra: str) -> list[str]:
        return [SCRIPT, "--result", str(out / "result.json"), *config, *FEWER, *extra]

    reference = torchrun(words(tmp_path / "reference"), 2, timeout_s=300)
    assert reference.returncode == 0, reference.stderr[-3000:]
    kills = ("1 3 backward", "0 5 forward", "1 8 step", "0 10 after-step")
    command = words(tmp_path / "job", "--ff-failover")
    job = fftrain(tmp_path / "job", command, *NODES, *injections(*kills), ranks=2, timeout_s=400)
    assert_same(job, results(tmp_path / "reference", 2))
    show(job)
    assert len(job.of("failover")) == len(kills)
    wanted = logged(reference.stdout)
    assert len(wanted) > 14, reference.stdout[-3000:]
    assert logged(job.stdout) == wanted


def logged(text: str) -> list[tuple[str, ...]]:
    return [found.groups("") for found in LINE.finditer(text)]
