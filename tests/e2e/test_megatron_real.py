"""Megatron-LM's own pretrain_gpt.py, unmodified, loses ranks and ends with the bits of the uninterrupted run.

Megatron-LM is not on PyPI: MEGATRON_LM_PATH names a checkout of a tag, core_v0.16.1 to 0.19, with its datasets'
helpers_cpp built, or copied from the wheel of megatron-core. Its script also imports six, regex, triton and yaml.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import jobs
from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import Job, committed, fftrain, torchrun, wait_for
from tests.e2e.test_megatron_saves import BACKGROUND, digests, latest, whole

SCRIPT = str(Path(__file__).parents[1] / "megatron" / "pretrain_real.py")
CONFIG = Path(__file__).parents[2] / "configs" / "megatron" / "cpu_small.args"
CHECKOUT = os.environ.get("MEGATRON_LM_PATH")
LACKING = [name for name in ("six", "regex", "triton", "yaml") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="MEGATRON_LM_PATH names no checkout of Megatron-LM"),
    pytest.mark.skipif(bool(LACKING), reason=f"pretrain_gpt.py imports {', '.join(LACKING)}: not installed"),
]
OVERLAP = ("--overlap-grad-reduce", "--overlap-param-gather")
SMALL = ("--train-iters", "8", "--lr-decay-iters", "8", "--eval-interval", "4")


@pytest.fixture(autouse=True)
def without_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jobs.ENV, "TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bytes of the Python standard library as the checkout's tools/preprocess_data.py prepares them: the prefix."""
    folder = tmp_path_factory.mktemp("library")
    modules = [path for path in sorted(Path(os.__file__).parent.glob("*.py")) if path.stat().st_size]
    with open(folder / "library.jsonl", "w") as file:
        for path in modules:
            file.write(json.dumps({"text": " ".join(str(byte) for byte in path.read_bytes())}) + "\n")
    command = [
        sys.executable, f"{CHECKOUT}/tools/preprocess_data.py", "--input", str(folder / "library.jsonl"), "--workers",
        "1", "--output-prefix", str(folder / "library"), "--tokenizer-type", "NullTokenizer", "--vocab-size", "256",
        "--append-eod",
    ]  # fmt: skip
    done = subprocess.run(command, env=jobs.ENV, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "library_text_document"


def words(out: Path, *extra: str) -> list[str]:
    config = [word for word in CONFIG.read_text().split() if word != "--ff-failover"]
    if "--data-path" in extra:
        config.remove("--mock-data")
    return [SCRIPT, "--result", str(out / "result.json"), *config, *SMALL, *extra]


def uninterrupted(out: Path, *extra: str) -> dict[int, Any]:
    done = torchrun(words(out, *extra), timeout_s=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return results(out)


def interrupted(out: Path, kills: tuple[str, ...], *extra: str) -> Job:
    return fftrain(
        out, [*words(out, *extra), "--ff-failover"], "--emulate-nodes", "2", "--spares", "1", *injections(*kills),
        timeout_s=500,
    )  # fmt: skip


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
def test_pretrain_gpt_survives(tmp_path: Path, extra: tuple[str, ...], kills: tuple[str, ...]) -> None:
    wanted = uninterrupted(tmp_path / "reference", *extra)
    job = interrupted(tmp_path / "job", kills, *extra)
    assert_same(job, wanted)
    assert len(job.of("failover")) == len(kills)


#: What train() begins, and begins again when it is entered again. A straggler detector that is on needs a GPU.
BEGUN = (
    "--profile", "--use-pytorch-profiler", "--profile-step-start", "3", "--profile-step-end", "6", "--profile-ranks",
    "0", "1", "--log-energy", "--log-straggler", "--disable-straggler-on-startup", "--exit-signal-handler",
    "--exit-duration-in-mins", "100",
)  # fmt: skip


@pytest.mark.timeout(2400)
def test_saves_in_the_background_and_what_train_begins_once(tmp_path: Path) -> None:
    """Rank 1 dies while rank 0 still writes iteration 4: all save iteration 5 instead."""
    extra = (*BEGUN, "--ckpt-format", "torch_dist", "--ckpt-fully-parallel-save")

    def places(out: Path) -> tuple[str, ...]:
        return "--save", str(out / "checkpoints"), "--tensorboard-dir", str(out / "traces")

    reference, out = tmp_path / "reference", tmp_path / "job"
    done = torchrun(words(reference, *extra, *places(reference), "--save-interval", "1"), 2, timeout_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    background = (*BACKGROUND, "--save-interval", "4", "--hold-save", "4", "0")
    job = fftrain(
        out, [*words(out, *extra, *places(out), *background), "--ff-failover"], "--emulate-nodes", "2",
        *injections("1 6 backward"), ranks=2, timeout_s=900,
    )  # fmt: skip
    assert_same(job, results(reference, 2))
    checkpoints = out / "checkpoints"
    assert whole(checkpoints) == [5, 8] and latest(checkpoints) == 8
    assert digests(checkpoints, 5, 8) == digests(reference / "checkpoints", 5, 8)
    assert list((out / "traces").glob("*.json"))


#: A recipe as people write them, as far as it runs without TransformerEngine: stages of different length by a layout,
#: experts with biased routers, multi-token prediction, recomputed layers, and everything that is logged.
RECIPE = (
    "--num-layers", "4", "--pipeline-model-parallel-size", "2", "--pipeline-model-parallel-layout", "Et|tttmL",
    "--group-query-attention", "--num-query-groups", "2", "--position-embedding-type", "rope", "--normalization",
    "RMSNorm", "--swiglu", "--disable-bias-linear", "--untie-embeddings-and-output-weights", "--num-experts", "4",
    "--expert-model-parallel-size", "2", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "32",
    "--moe-shared-expert-intermediate-size", "32", "--moe-router-load-balancing-type", "none",
    "--moe-router-score-function", "sigmoid", "--moe-router-enable-expert-bias", "--moe-token-dispatcher-type",
    "alltoall", "--mtp-num-layers", "1", "--recompute-granularity", "full", "--recompute-method", "uniform",
    "--recompute-num-layers", "1", *OVERLAP, "--log-params-norm", "--log-num-zeros-in-grad", "--manual-gc",
    "--manual-gc-interval", "3", "--iterations-to-skip", "3", "--timing-log-level", "2",
    "--check-weight-hash-across-dp-replicas-interval", "2",
)  # fmt: skip


def validations(text: str) -> list[str]:
    return re.findall(r"validation loss at .* lm loss value: \S+", text)


@pytest.mark.timeout(1800)
def test_a_recipe_and_its_validation_losses(tmp_path: Path) -> None:
    """The evaluation of iteration 4 is left out with it: replacements' validation samples are those of the others."""
    reference = tmp_path / "reference"
    done = torchrun(words(reference, *RECIPE), timeout_s=500)
    assert done.returncode == 0, done.stderr[-3000:]
    job = interrupted(tmp_path / "job", ("2 3 backward", "0 5 step", "3 7 forward"), *RECIPE)
    assert_same(job, results(reference))
    assert len(job.of("failover")) == 3
    assert validations(job.stdout) == validations(done.stdout) != []


@pytest.mark.timeout(1800)
def test_exit_signal_handler(tmp_path: Path) -> None:
    """After a failure all ranks, the replacement too, hear of SIGTERM, save the same iteration and end."""
    long = ("--train-iters", "100", "--lr-decay-iters", "100", "--ckpt-format", "torch_dist", "--save-interval", "1000")

    def stop(out: Path, launcher: subprocess.Popen[str]) -> None:
        wait_for(out, committed(5), 400)
        launcher.terminate()

    out = tmp_path / "job"
    job = fftrain(
        out, [*words(out, *long, "--exit-signal-handler", "--save", str(out / "checkpoints")), "--ff-failover"],
        "--emulate-nodes", "2", "--spares", "1", "--shutdown-timeout", "200", *injections("0 3 backward"), ranks=2,
        timeout_s=900, meanwhile=stop,
    )  # fmt: skip
    assert job.code == 1 and len(job.of("failover")) == 1, job.stderr[-3000:]  # as torchrun's after a signal
    (saved,) = whole(out / "checkpoints")
    assert 5 <= saved < 100
    reference = tmp_path / "reference"
    done = torchrun(words(reference, *long, "--exit-interval", str(saved)), 2, timeout_s=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(replace(job, code=0), results(reference, 2))


@pytest.mark.timeout(1200)
def test_real_data_with_index_files_that_exist(tmp_path: Path, library: Path) -> None:
    """Replacements, of rank 0 too, which builds them in a job's beginning, use the index files and write none."""
    cache = tmp_path / "cache"
    extra = (
        "--data-path", str(library), "--data-cache-path", str(cache), "--split", "90,5,5", "--vocab-size", "256",
        "--tensor-model-parallel-size", "2",
    )  # fmt: skip
    wanted = uninterrupted(tmp_path / "reference", *extra)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert any(path.suffix == ".npy" for path in before)
    job = interrupted(tmp_path / "job", ("3 3 backward", "0 6 forward"), *extra)
    assert_same(job, wanted)
    assert len(job.of("failover")) == 2
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


@pytest.mark.timeout(2400)
def test_torch_dist_checkpoints(tmp_path: Path) -> None:
    """A save that a death interrupts is done again; a job that begins from it replaces ranks without reading it."""
    saving = ("--ckpt-format", "torch_dist", "--save-interval", "4", "--lr-decay-iters", "12")
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    wanted = uninterrupted(tmp_path / "reference", *saving, "--save", theirs)
    job = interrupted(tmp_path / "job", ("0 6 step",), *saving, "--save", ours, "--die-in-save", "2", "4")
    assert_same(job, wanted)
    assert (tmp_path / "job" / "died-in-save").exists()
    assert len(job.of("failover")) == 2
    assert [event["version"] for event in job.of("persisted")][-1] == 8

    # megatron-core 0.16 cannot load the state of torch's Adam under DistributedOptimizer: weights and counters only
    loading = ("--ckpt-format", "torch_dist", "--no-load-optim", "--train-iters", "12", "--lr-decay-iters", "12")
    wanted = uninterrupted(tmp_path / "reference2", *loading, "--load", theirs)
    job = interrupted(tmp_path / "job2", ("1 2 backward", "0 3 after-step"), *loading, "--load", ours)
    assert_same(job, wanted)
    # what lies on disk is iteration 8; the second death comes when iteration 10 has been committed
    assert re.search(r"load_checkpoint\(\) was answered from memory: iteration 1[01]\b", job.stdout)
