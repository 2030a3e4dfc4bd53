"""ZeRO-3: interrupted in front of every collective of an iteration, and gone on with by a replacement, to the bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deepspeed.same import are_the_same
from tests.deepspeed.tested import own_loss

Case = dict[str, Any]
#: Biases stay whole between steps, matrices do not.
SMALL = {"stage3_param_persistence_threshold": 64}

LAYOUTS: dict[str, Case] = {
    "bf16": {"dtype": "bf16", "zero": SMALL},
    "fp32": {"dtype": "fp32", "zero": SMALL},
    "bf16-all-persistent": {"dtype": "bf16"},
    "bf16-none-persistent": {"dtype": "bf16", "zero": {"stage3_param_persistence_threshold": 0}},
    "bf16-gas2-small-buckets": {"dtype": "bf16", "gas": 2, "zero": {**SMALL, "reduce_bucket_size": 300}},
    "fp32-sub-groups-no-prefetch": {
        "dtype": "fp32", "zero": {**SMALL, "sub_group_size": 100, "stage3_prefetch_bucket_size": 0}, "clip": 0.0,
    },
    "bf16-overlap-sequential-gathers": {
        "dtype": "bf16", "zero": {**SMALL, "overlap_comm": True, "stage3_allgather_sequential": True},
    },
    "bf16-adamw-of-the-configuration": {
        "dtype": "bf16", "zero": SMALL, "optimizer": "json", "config": {"optimizer": {"type": "AdamW"}},
    },
    "fp32-momentum-made-late": {
        "dtype": "fp32", "zero": SMALL, "optimizer": "json",
        "config": {
            "optimizer": {"type": "SGD", "params": {"lr": 0.01, "momentum": 0.9}},
            "zero_allow_untested_optimizer": True,
        },
    },
    "fp32-cpu-adam": {"dtype": "fp32", "zero": SMALL, "optimizer": "cpu_adam"},
    "bf16-offloaded-optimizer-gas2": {
        "dtype": "bf16", "gas": 2, "optimizer": "cpu_adam",
        "zero": {**SMALL, "offload_optimizer": {"device": "cpu", "pin_memory": False}},
    },
    "fp32-all-offloaded": {
        "dtype": "fp32", "optimizer": "cpu_adam",
        "zero": {**SMALL, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
    },
}  # fmt: skip

#: What the others have one by one.
QUICK = (
    "bf16", "bf16-gas2-small-buckets", "bf16-overlap-sequential-gathers", "bf16-adamw-of-the-configuration",
    "fp32-momentum-made-late", "bf16-offloaded-optimizer-gas2", "fp32-all-offloaded",
)  # fmt: skip
MORE = tuple(name for name in LAYOUTS if name not in QUICK)
GROUPS = [QUICK[:2], QUICK[2:4], QUICK[4:], *(pytest.param(n, marks=pytest.mark.slow) for n in (MORE[:3], MORE[3:]))]

#: Two in each iteration. The first finds a complete trace of the modules' order, the second one being recorded anew.
PLAN = [[2 + number // 2, number] for number in range(24)]
ITERATIONS = 14


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_interrupted_run_equals_uninterrupted_run(names: tuple[str, ...], run_cases: Callable[..., Any]) -> None:
    base = [{"stage": 3, "iterations": ITERATIONS, **LAYOUTS[name]} for name in names]
    results = run_cases([*({**case, "protected": False} for case in base), *({**case, "plan": PLAN} for case in base)])
    for number, name in enumerate(names):
        for rank in range(2):
            reference, got = results[number][rank], results[len(names) + number][rank]
            assert len(got["recovered"]) >= reference["collectives"] >= 6, name
            assert got["losses"] == reference["losses"], f"{name}, rank {rank}"
            assert got["digest"] == reference["digest"], f"{name}, rank {rank}"
            assert len(reference["losses"]) == ITERATIONS


def test_second_copies_of_parameters(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """hpZ: forward gathers over all ranks, backward within two. A frozen layer's second copy outlives the step."""
    base = {"stage": 3, "dtype": "bf16", "gas": 2, "iterations": 8, "zero": {**SMALL, "zero_hpz_partition_size": 2}}
    plan = [[2 + number // 2, number] for number in range(12)]
    slot = str(tmp_path / "slot")
    cases = [{"protected": False}, {"plan": plan}, {"save_at": 3, "save_to": slot}, {"resume_from": slot}]
    whole, *others = run_cases([{**base, **case} for case in cases], world=4)
    for rank in range(4):
        assert len(others[0][rank]["recovered"]) >= 10
        for got in (ranks[rank] for ranks in others):
            assert got["digest"] == whole[rank]["digest"]
            assert all(whole[rank]["losses"][step] == loss for step, loss in got["losses"].items())


NEWCOMERS: dict[str, Case] = {
    "bf16": {"dtype": "bf16", "zero": SMALL, "save_at": 4},
    "before-the-first-iteration": {"dtype": "bf16", "save_at": 0},
    "fp32-gas2": {"dtype": "fp32", "zero": SMALL, "gas": 2, "save_at": 3},
    "bf16-all-offloaded": {
        "dtype": "bf16", "optimizer": "cpu_adam", "save_at": 3,
        "zero": {**SMALL, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
    },
    "second-epoch-cpu-adam": {
        "dtype": "fp32", "optimizer": "cpu_adam", "epochs": 2, "iterations": 4, "extra": 2, "save_at": 6,
    },
}  # fmt: skip


def test_newcomer_continues_exactly(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    cases = []
    for name, given in NEWCOMERS.items():
        case = {"stage": 3, **{key: value for key, value in given.items() if key != "save_at"}}
        cases.append({**case, "save_at": given["save_at"], "save_to": str(tmp_path / name)})
        cases.append({**case, "resume_from": str(tmp_path / name)})
    results = run_cases(cases)
    for number, (name, given) in enumerate(NEWCOMERS.items()):
        for rank in range(2):
            whole, rest = results[2 * number][rank], results[2 * number + 1][rank]
            assert rest["losses"] == {step: loss for step, loss in whole["losses"].items() if step in rest["losses"]}, (
                name
            )
            assert 0 < len(rest["losses"]) < len(whole["losses"]) or given["save_at"] == 0, name
            assert rest["digest"] == whole["digest"], name
            assert rest["evaluations"] == whole["evaluations"], f"{name}: random numbers after the loop"


def test_gradients_of_an_earlier_iteration_are_refused(run_cases: Callable[..., Any]) -> None:
    """What DeepSpeed takes for a parameter without one. The remedy, and a layer that never runs, are exact."""
    base = {"stage": 3, "dtype": "fp32", "zero": SMALL, "gas": 2}
    wrong = [{**base, "sometimes": how, "may_fail": True} for how in ("skips", "frozen", "second")]
    right = [{**base, "sometimes": how, "plan": [[4, 3], [5, 9]]} for how in ("zero", "never")]
    skips, frozen, second, *others = run_cases(
        [*wrong, *right, *({**case, "plan": [], "protected": False} for case in right)]
    )
    for rank in range(2):
        for whole in (skips, frozen):
            assert re.search(
                r"extra\.weight, extra\.bias got no gradient in iteration 3, after .*0\.0", whole[rank]["error"]
            )
        assert re.search(r"extra\.bias got .* in iteration 3's first micro-batch, after", second[rank]["error"])
    are_the_same(others[:2], others[2:], recovered=2)


@own_loss
def test_calls_of_an_unmodified_loop_are_made_again(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """Interrupted, and joined by a replacement; with a loss of the script's own, and with its checkpoints."""
    plan = [[2 + number // 2, number] for number in range(12)]
    base = {"stage": 3, "zero": SMALL, "unmodified": True}
    own = {**base, "dtype": "fp32", "iterations": 5, "gas": 2, "epochs": 2, "own_loss": True}
    steps = {**base, "dtype": "bf16", "iterations": 8, "directory": str(tmp_path / "disk")}
    saved = {"save_at": 4, "save_to": str(tmp_path / "slot")}
    results = run_cases(
        [
            {**own, "protected": False},
            {**own, "plan": plan},
            {**own, "plan": plan, "behind": 1},
            {**steps, "protected": False},
            {**steps, "plan": plan},
            {**steps, **saved},
            {**steps, "resume_from": saved["save_to"]},
        ]
    )
    for reference, got in ((0, 1), (0, 2), (3, 4), (3, 5), (3, 6)):
        for rank in range(2):
            assert results[got][rank]["digest"] == results[reference][rank]["digest"], (reference, got)
            losses = results[reference][rank]["losses"]
            assert all(losses[step] == loss for step, loss in results[got][rank]["losses"].items()), (reference, got)
    assert all(len(results[number][0]["recovered"]) >= 4 for number in (1, 2, 4))
