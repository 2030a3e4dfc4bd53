"""fp16 with a loss scale that changes: interrupted around skipped steps, and joined by a replacement, to the bit.

The digests have the scaler's counts in them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deepspeed.tested import own_loss

Case = dict[str, Any]
#: Biases stay whole between steps, matrices do not.
SMALL = {"stage3_param_persistence_threshold": 64}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
JSON = {"optimizer": "json", "config": {"optimizer": {"type": "AdamW"}}}
SGD = {
    "optimizer": "json",
    "config": {
        "optimizer": {"type": "SGD", "params": {"lr": 0.01, "momentum": 0.9}}, "zero_allow_untested_optimizer": True,
    },
}  # fmt: skip

LAYOUTS: dict[str, Case] = {
    "zero0": {"stage": 0},
    "zero0-fused": {"stage": 0, **JSON},
    "zero1": {"stage": 1, "gas": 2},
    "zero2": {"stage": 2},
    "zero2-offloaded": {"stage": 2, "gas": 2, "optimizer": "cpu_adam", "zero": OFFLOADED},
    "zero3": {"stage": 3, "zero": SMALL},
    "zero3-gas2-small-buckets": {"stage": 3, "gas": 2, "zero": {**SMALL, "reduce_bucket_size": 300}},
    "zero3-all-persistent": {"stage": 3},
    "zero3-fused-overlap": {"stage": 3, **JSON, "zero": {**SMALL, "overlap_comm": True}},
    "zero3-momentum-made-late": {"stage": 3, **SGD, "zero": SMALL},
    "zero3-offloaded-optimizer-gas2": {"stage": 3, "gas": 2, "optimizer": "cpu_adam", "zero": {**SMALL, **OFFLOADED}},
    "zero3-all-offloaded": {
        "stage": 3, "optimizer": "cpu_adam", "zero": {**SMALL, **OFFLOADED, "offload_param": {"device": "cpu"}},
    },
    "zero3-static-scale": {"stage": 3, "zero": SMALL, "scaler": {"loss_scale": 64}},
}  # fmt: skip
QUICK = ("zero0", "zero2-offloaded", "zero3", "zero3-offloaded-optimizer-gas2")
MORE = tuple(name for name in LAYOUTS if name not in QUICK)
GROUPS = [QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in (MORE[:5], MORE[5:]))]

#: The first step is skipped: no optimizer has made its state then. One rank alone, both, the other one, twice in a row.
OVERFLOW = [[1, 0], [4, 1], [5, 0], [5, 1], [10, 1], [13, 0]]
#: Two in each iteration, in skipped ones as well.
PLAN = [[1, 1], *([2 + number // 2, number] for number in range(22))]
ITERATIONS = 14


def of(name: str, **more: Any) -> Case:
    return {"dtype": "fp16", "iterations": ITERATIONS, "overflow": OVERFLOW, **LAYOUTS[name], **more}


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_interrupted_run_equals_uninterrupted_run(names: tuple[str, ...], run_cases: Callable[..., Any]) -> None:
    results = run_cases([*(of(name, protected=False) for name in names), *(of(name, plan=PLAN) for name in names)])
    for number, name in enumerate(names):
        for rank in range(2):
            reference, got = results[number][rank], results[len(names) + number][rank]
            assert len(got["recovered"]) >= min(reference["collectives"], 4), name
            assert got["losses"] == reference["losses"], f"{name}, rank {rank}"
            assert got["digest"] == reference["digest"], f"{name}, rank {rank}"
            assert reference["skipped"] == 5, name


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_newcomer_continues_exactly(names: tuple[str, ...], run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """The version was skipped: its weights are those of the one before, the scale is not."""
    cases = []
    for number, name in enumerate(names):
        save_at = (1, 4, 5, 9)[number % 4]
        cases.append(of(name, save_at=save_at, save_to=str(tmp_path / name)))
        cases.append(of(name, resume_from=str(tmp_path / name)))
    results = run_cases(cases)
    for number, name in enumerate(names):
        for rank in range(2):
            whole, rest = results[2 * number][rank], results[2 * number + 1][rank]
            assert rest["losses"] == {step: loss for step, loss in whole["losses"].items() if step in rest["losses"]}
            assert 0 < len(rest["losses"]) < len(whole["losses"]), name
            assert rest["digest"] == whole["digest"], name


@own_loss
def test_calls_of_an_unmodified_loop_are_made_again(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """With a loss of the script's own, too: what is sent back into the model is scaled."""
    base = [
        of("zero3", unmodified=True),
        of("zero2", unmodified=True, gas=2),
        of("zero3", unmodified=True, own_loss=True),
    ]
    cases = []
    for number, case in enumerate(base):
        saved = str(tmp_path / str(number))
        cases += [{**case, "protected": False}, {**case, "plan": PLAN}, {**case, "plan": PLAN, "behind": 1}]
        cases += [{**case, "save_at": 5, "save_to": saved}, {**case, "resume_from": saved}]
    results = run_cases(cases)
    for number in range(0, len(cases), 5):
        for rank in range(2):
            reference, *others = (results[number + place][rank] for place in range(5))
            for got in others:
                assert got["digest"] == reference["digest"], number
                assert all(reference["losses"][step] == loss for step, loss in got["losses"].items()), number
            assert len(others[0]["recovered"]) >= 4


@own_loss
def test_a_loss_that_is_written_in_place_is_made_again_as_it_was(run_cases: Callable[..., Any]) -> None:
    """It is the very tensor that the engine gave, with another value."""
    base = {"stage": 2, "dtype": "fp16", "gas": 2, "iterations": 5, "unmodified": True, "in_place": True, "clip": 0.0}
    reference, got = run_cases([{**base, "protected": False}, {**base, "plan": [[2, 3], [3, 5], [4, 4]]}])
    for rank in range(2):
        assert len(got[rank]["recovered"]) >= 2
        assert got[rank]["digest"] == reference[rank]["digest"]
