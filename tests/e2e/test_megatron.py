"""Whole Megatron jobs on the real megatron-core, killed at every point: losses, parameters, optimizer state, counters
and random states as of the uninterrupted job under plain torchrun."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import assert_same, injections, results
from tests.e2e.jobs import ENV, Job, fftrain, torchrun, uninterrupted

SCRIPT = str(Path(__file__).parents[1] / "megatron" / "train_tiny.py")
ZERO = ("--use-distributed-optimizer",)
OVERLAP = ("--overlap-grad-reduce", "--overlap-param-gather", "--ddp-bucket-size", "2000")
EVALUATION = ("--eval-iters", "1", "--eval-interval", "4")
#: What `make test` kills, beside NODES.
FEW_KILLS = ("2 3 backward", "3 9 forward")
#: Every rank once; iteration 9 is killed in the evaluation that follows iteration 8, 11 in the one after the loop.
KILLS = ("2 3 backward", "0 4 step", "1 6 after-step", "3 9 forward", "0 11 forward")
#: Ranks 0 and 1 are one node, and under TP2 one tensor-parallel group.
NODES = ("0 4 step", "1 4 step", "2 7 after-step", "3 7 after-step")
#: The one that is faster leaves the other in a collective of their tensor-parallel group.
IN_BACKWARD = ("0 4 backward", "1 4 backward")


def words(out: Path, *extra: str) -> list[str]:
    return [SCRIPT, "--result", str(out / "result.json"), *extra]


def saved(out: Path, *extra: str) -> dict[int, Any]:
    """Results of an uninterrupted training, made anew for the checkpoints that it leaves."""
    out.mkdir(parents=True)
    done = torchrun(words(out, *extra), timeout_s=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return results(out)


def both(tmp_path: Path, extra: tuple[str, ...], kills: tuple[str, ...], spares: int = 1) -> Job:
    """The job uninterrupted and with `kills`; they must agree.  spares: per node."""
    if any(str(tmp_path) in word for word in extra):
        wanted = saved(tmp_path / "reference", *extra)
    else:
        wanted = results(uninterrupted(SCRIPT, extra, lambda folder: ("--result", str(folder / "result.json"))))
    job = fftrain(
        tmp_path / "job", [*words(tmp_path / "job", *extra), "--ff-failover"], "--emulate-nodes", "2", "--spares",
        str(spares), *injections(*kills), timeout_s=400,
    )  # fmt: skip
    assert_same(job, wanted)
    return job


slow = pytest.mark.slow
TP2, PP2, PP4 = (("--tensor-model-parallel-size", "2"), *(("--pipeline-model-parallel-size", n) for n in "24"))
FIRST1 = ("--decoder-first-pipeline-num-layers", "1")
MTP = ("--mtp-num-layers", "1")
VPP2 = ("--num-layers-per-virtual-pipeline-stage", "1")
EP2, CP2 = (("--num-experts", "4", "--expert-model-parallel-size", "2"), ("--context-parallel-size", "2"))
CASES = [
    pytest.param(("--bf16", *ZERO, *OVERLAP), id="dp4-bf16-overlap", marks=slow),
    pytest.param(("--bf16", *ZERO), id="dp4-bf16", marks=slow),
    pytest.param((*ZERO, "--num-workers", "2"), id="dp4-fp32-workers", marks=slow),
    pytest.param(("--fp16", *ZERO), id="dp4-fp16", marks=slow),
    pytest.param(("--bf16", *ZERO, "--disable-gloo-process-groups", *TP2), id="tp2-dp2-no-gloo-groups", marks=slow),
    pytest.param(("--bf16", *ZERO, *PP2, *OVERLAP, "--global-batch-size", "16"), id="pp2-dp2-overlap", marks=slow),
    pytest.param(("--bf16", *ZERO, *PP2), id="pp2-dp2", marks=slow),
    pytest.param(("--bf16", *ZERO, *PP4), id="pp4", marks=slow),
    pytest.param(("--bf16", *ZERO, *PP2, *VPP2, *OVERLAP), id="pp2-vpp2-dp2-overlap", marks=slow),
    pytest.param(
        ("--bf16", *ZERO, "--overlap-grad-reduce", "--num-distributed-optimizer-instances", "2"),
        id="dp4-two-optimizer-instances",
        marks=slow,
    ),
    pytest.param(("--bf16", *ZERO, *EP2, *OVERLAP), id="ep2-dp4-overlap", marks=slow),
    pytest.param(("--bf16", *ZERO, *EP2, *PP2, "--moe-token-dispatcher-type", "allgather"), id="ep2-pp2", marks=slow),
    pytest.param(("--fp16", *EP2), id="ep2-dp4-fp16-replicated", marks=slow),
    pytest.param(("--bf16", *EP2, *PP2), id="ep2-pp2-experts-on-one-rank", marks=slow),
    pytest.param(("--bf16", *ZERO, *CP2, *OVERLAP), id="cp2-dp2-overlap", marks=slow),
    pytest.param(("--bf16", *CP2, *TP2), id="cp2-tp2-replicated", marks=slow),
    pytest.param(
        ("--bf16", *ZERO, *OVERLAP, "--precision-aware", "float16", "bfloat16", "remainders"),
        id="dp4-precision-aware-remainders",
        marks=slow,
    ),
    pytest.param(
        ("--bf16", *ZERO, *EP2, "--precision-aware", "bfloat16", "float16", "float16"),
        id="ep2-dp4-precision-aware-fp16-masters",
        marks=slow,
    ),
    pytest.param(("--bf16",), id="dp4-bf16-replicated", marks=slow),
    pytest.param(("--bf16", *TP2), id="tp2-dp2-bf16-replicated", marks=slow),
    pytest.param((), id="dp4-fp32-replicated", marks=slow),
    pytest.param(("--bf16", *PP2, *FIRST1, *MTP, "--optimizer", "sgd"), id="pp2-dp2-uneven-mtp-sgd", marks=slow),
    pytest.param(("--bf16", *TP2, "--t5", "--optimizer", "muon"), id="tp2-dp2-t5-muon", marks=slow),
    pytest.param(("--bf16", "--optimizer", "dist_muon"), id="dp4-dist-muon", marks=slow),
]


@pytest.mark.timeout(700)
@pytest.mark.parametrize("extra", CASES)
def test_every_rank_once_and_in_evaluations(tmp_path: Path, extra: tuple[str, ...]) -> None:
    job = both(tmp_path, (*extra, *EVALUATION), KILLS)
    assert len(job.of("failover")) == len(KILLS)


@pytest.mark.timeout(700)
def test_pipeline_overlap_experts_and_evaluations(tmp_path: Path) -> None:
    """PP2 EP2: pipeline stages, operations under way while gradients are made, experts with optimizer and random states
    of their own, an evaluation between iterations."""
    extra = ("--bf16", *ZERO, *PP2, *EP2, *OVERLAP, "--global-batch-size", "16", *EVALUATION)
    job = both(tmp_path, extra, FEW_KILLS)
    assert len(job.of("failover")) == len(FEW_KILLS)


@pytest.mark.timeout(700)
@pytest.mark.parametrize("kills", [NODES[:2], pytest.param(NODES, marks=slow), pytest.param(IN_BACKWARD, marks=slow)])
def test_both_ranks_of_a_node_at_once(tmp_path: Path, kills: tuple[str, ...]) -> None:
    """TP2 DP2: the two ranks of a tensor-parallel group die together; and the others later."""
    job = both(tmp_path, ("--bf16", *ZERO, *TP2), kills, spares=0)
    assert {rank for event in job.of("failover") for rank in event["dead"]} == {int(kill[0]) for kill in kills}


@pytest.mark.timeout(700)
@slow
def test_experts(tmp_path: Path) -> None:
    """EP2: experts have data-parallel ranks, optimizer and random states of their own; routers remember."""
    job = both(tmp_path, ("--bf16", *ZERO, *EP2, "--train-iters", "6"), ("2 3 backward", "1 5 step"))
    assert len(job.of("failover")) == 2


@pytest.mark.timeout(700)
@slow
def test_batch_ramp_up_saves_and_sparse_logs(tmp_path: Path) -> None:
    ramp = ("--global-batch-size", "16", "--rampup-batch-size", "8", "8", "32")
    extra = ("--bf16", *ZERO, *ramp, "--log-interval", "3", "--save-interval", "4")
    job = both(tmp_path, (*extra, "--save", str(tmp_path / "checkpoints")), KILLS[:4])
    assert [e["version"] for e in job.of("persisted")][-1] == 10
    assert (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "10"


@pytest.mark.timeout(700)
@slow
def test_a_loop_that_exits_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ENV, "TORCHDYNAMO_DISABLE")  # as users have it
    both(tmp_path, ("--bf16", *ZERO, "--exit-interval", "7"), ("2 3 backward", "1 7 after-step"))


@pytest.mark.timeout(700)
@slow
def test_a_script_that_remembers(tmp_path: Path) -> None:
    """In its data set, get_batch(), Megatron's arguments, a train_step() of its own: see megatron/remembers.py."""
    script, extra = str(Path(SCRIPT).with_name("remembers.py")), ("--bf16", *ZERO, *EVALUATION)
    wanted = results(uninterrupted(script, extra, lambda folder: ("--result", str(folder / "result.json")), 2), 2)
    out = tmp_path / "job"
    command = [script, "--result", str(out / "result.json"), *extra, "--ff-failover"]
    kills = injections("0 3 forward", "1 7 after-step")
    job = fftrain(out, command, "--emulate-nodes", "2", "--spares", "1", *kills, ranks=2, timeout_s=400)
    assert_same(job, wanted)
    assert len(job.of("failover")) == 2


@pytest.mark.timeout(300)
@slow
def test_loader_processes_that_remember_are_refused(tmp_path: Path) -> None:
    command = [str(Path(SCRIPT).with_name("remembers.py")), "--result", str(tmp_path / "result.json"), "--num-workers"]
    job = fftrain(tmp_path / "job", [*command, "1", "--bf16", *ZERO, "--ff-failover"], ranks=1)
    assert job.code != 0 and not job.of("failover")
    assert "loading changes the random state of the loader's processes in a process of the data loader" in job.stderr


@pytest.mark.timeout(900)
@slow
def test_a_job_that_begins_from_a_checkpoint(tmp_path: Path) -> None:
    """A replacement's load_checkpoint() is answered from memory, not with what lies on disk."""
    checkpoints = str(tmp_path / "checkpoints")
    saving = ("--save", checkpoints, "--save-interval", "3", "--train-iters", "3")
    saved(tmp_path / "first", "--bf16", *ZERO, *saving)
    extra = ("--bf16", *ZERO, "--load", checkpoints, "--train-iters", "9")
    both(tmp_path, extra, ("2 2 backward", "0 4 step"))


@pytest.mark.timeout(300)
def test_what_cannot_be_protected_is_refused_at_the_start(tmp_path: Path) -> None:
    job = fftrain(tmp_path / "job", [*words(tmp_path, "--bf16", "--skip-train", *ZERO), "--ff-failover"], ranks=1)
    assert job.code != 0
    assert "this job cannot be protected: --skip-train" in job.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((*ZERO, *OVERLAP), id="overlap"),
        pytest.param(ZERO, id="zero", marks=slow),
        pytest.param((), id="replicated", marks=slow),
    ],
)
def test_edited_weights_are_refused_by_name(tmp_path: Path, layout: tuple[str, ...]) -> None:
    """Though all ranks make the same edit."""
    extra = ("--bf16", "--clamp", "weights", *layout)
    job = fftrain(tmp_path / "job", [*words(tmp_path, *extra), "--ff-failover"], ranks=2)
    assert job.code != 0
    assert re.search(
        r"wrote into 0\.module\..*weight.* outside of the optimizer step.*register_step_post_hook", job.stderr
    )


@slow
@pytest.mark.timeout(600)
def test_what_the_refusal_of_edited_weights_advises(tmp_path: Path) -> None:
    both(tmp_path, ("--bf16", "--clamp", "masters", *ZERO), FEW_KILLS)


@slow
@pytest.mark.timeout(600)
def test_an_evaluation_that_is_left_out(tmp_path: Path) -> None:
    """With its iteration, by --iterations-to-skip. Megatron counts it in a replacement, whose validation samples would
    be others than those of the rest; a skipped iteration takes its samples and makes no version."""
    extra = (*ZERO, "--eval-iters", "1", "--eval-interval", "4", "--iterations-to-skip", "3")
    done = torchrun(words(tmp_path / "reference", *extra), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = ("1 4 backward", "1 6 forward", "0 8 step")
    job = fftrain(
        tmp_path / "job", [*words(tmp_path / "job", *extra), "--ff-failover"], "--emulate-nodes", "2",
        *injections(*kills), ranks=2, timeout_s=400,
    )  # fmt: skip
    assert_same(job, results(tmp_path / "reference", 2))
    assert len(job.of("failover")) == len(kills)
    wanted = log_of(done.stdout)
    assert list(dict.fromkeys(log_of(job.stdout))) == wanted and "validation loss" in "".join(wanted)


def log_of(text: str) -> list[str]:
    return re.findall(r"(?:iteration \d+ lr|memory after|validation loss).*", text)


@slow  # megatron/test_training_log.py has it without processes
@pytest.mark.timeout(600)
def test_the_log_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Averages over three iterations go on over failures. Lines come again only if the rank dies that writes them."""
    extra = (*EVALUATION, "--log-interval", "3")
    done = torchrun(words(tmp_path / "reference", *extra), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = log_of(done.stdout)
    assert len(wanted) > 8
    kills = ("0 5 backward", "0 9 forward", "1 11 step")
    job = fftrain(
        tmp_path / "job", [*words(tmp_path / "job", *extra), "--ff-failover"], "--emulate-nodes", "2",
        *injections(*kills), ranks=2, timeout_s=400,
    )  # fmt: skip
    assert_same(job, results(tmp_path / "reference", 2))
    lines = log_of(job.stdout)
    assert list(dict.fromkeys(lines)) == wanted
    before = next(index for index, line in enumerate(wanted) if line.startswith("iteration 9 "))
    assert all(lines.count(line) == 1 for line in wanted[:before])
