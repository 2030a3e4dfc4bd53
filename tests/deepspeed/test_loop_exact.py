"""The exact loop, interrupted in front of every collective of an iteration: losses and final state are those of a run
that was never interrupted, for every ZeRO stage, precision and optimizer that is supported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Case = dict[str, Any]

LAYOUTS: dict[str, Case] = {
    "stage0-fp32": {"stage": 0, "dtype": "fp32"},
    "stage0-bf16": {"stage": 0, "dtype": "bf16"},
    "stage1-fp32": {"stage": 1, "dtype": "fp32"},
    "stage1-bf16": {"stage": 1, "dtype": "bf16"},
    "stage1-bf16-gas2": {"stage": 1, "dtype": "bf16", "gas": 2},
    "stage1-bf16-amsgrad": {"stage": 1, "dtype": "bf16", "optimizer": "amsgrad", "clip": 0.0},
    "stage1-bf16-small-buckets": {"stage": 1, "dtype": "bf16", "zero": {"reduce_bucket_size": 300}},
    "stage1-bf16-not-contiguous": {"stage": 1, "dtype": "bf16", "zero": {"contiguous_gradients": False}},
    "stage1-bf16-overlap": {"stage": 1, "dtype": "bf16", "zero": {"overlap_comm": True}},
    "stage1-bf16-fp32-accumulation": {
        "stage": 1, "dtype": "bf16", "gas": 2, "config": {"data_types": {"grad_accum_dtype": "fp32"}},
    },
    "stage2-fp32-gas2": {"stage": 2, "dtype": "fp32", "gas": 2},
    "stage2-bf16": {"stage": 2, "dtype": "bf16", "zero": {"round_robin_gradients": True}},
    "stage2-bf16-gas2": {"stage": 2, "dtype": "bf16", "gas": 2},
    "stage0-fp32-cpu-adam": {"stage": 0, "dtype": "fp32", "optimizer": "cpu_adam"},
    "stage1-bf16-cpu-adam": {"stage": 1, "dtype": "bf16", "optimizer": "cpu_adam", "one_group": True},
    "stage2-bf16-cpu-adam-two-groups": {"stage": 2, "dtype": "bf16", "optimizer": "cpu_adam"},
}  # fmt: skip


# In front of each collective once, two of them in each iteration from the second on.
EVERY_COLLECTIVE = [[2 + number // 2, number] for number in range(40)]
ITERATIONS = 10


@pytest.mark.parametrize("group", range(4))
def test_interrupted_run_equals_uninterrupted_run(group: int, run_cases: Callable[..., Any]) -> None:
    names = list(LAYOUTS)[group::4]
    plain = [{**LAYOUTS[name], "iterations": ITERATIONS, "protected": False} for name in names]
    broken = [{**LAYOUTS[name], "iterations": ITERATIONS, "plan": EVERY_COLLECTIVE} for name in names]
    results = run_cases([*plain, *broken])
    for number, name in enumerate(names):
        for rank in range(2):
            reference, got = results[number][rank], results[len(names) + number][rank]
            assert len(got["recovered"]) == reference["collectives"] >= 3, name
            assert got["losses"] == reference["losses"], f"{name}, rank {rank}"
            assert got["digest"] == reference["digest"], f"{name}, rank {rank}"
            assert len(reference["losses"]) == ITERATIONS


def test_without_dropping_the_iteration_the_result_differs(run_cases: Callable[..., Any]) -> None:
    """The comparison above can tell: the same run without the reset goes wrong (or refuses)."""
    # Without clipping, which would hide that gradients are doubled.
    case = {"stage": 0, "dtype": "bf16", "iterations": 6, "clip": 0.0}
    after_backward = {"plan": [[3, 0]], "skip_reset": True, "may_fail": True}
    reference, got = (results[0] for results in run_cases([{**case, "protected": False}, {**case, **after_backward}]))
    assert got.get("digest") != reference["digest"]


SKIPPING = {"stage": 1, "dtype": "bf16", "iterations": 12, "skip": "some"}


def test_skipped_batches_belong_to_the_next_step(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """All ranks agree to skip some batches: no step is made of them, and they are handed out again like the others."""
    saved = str(tmp_path / "saved")
    plan = [[2, 0], [2, 1], [2, 2], [3, 2], [3, 3]]
    cases = [{**SKIPPING, "plan": plan}, {**SKIPPING, "plan": plan, "behind": 1}]
    cases += [{**SKIPPING, "save_at": 3, "save_to": saved}, {**SKIPPING, "resume_from": saved}]
    reference, broken, further, whole, rest = run_cases([{**SKIPPING, "protected": False}, *cases])
    for rank in range(2):
        assert 3 < len(reference[rank]["losses"]) < 12
        for got in (broken, further, whole):
            assert got[rank]["digest"] == reference[rank]["digest"]
            assert got[rank]["losses"] == reference[rank]["losses"]
        assert len(broken[rank]["recovered"]) == len(plan) and not broken[rank]["unfired"]
        assert rest[rank]["digest"] == reference[rank]["digest"]
        assert rest[rank]["losses"] == {k: v for k, v in reference[rank]["losses"].items() if int(k) > 3}


def test_swallowed_interrupt_is_remembered(run_cases: Callable[..., Any]) -> None:
    case = {"stage": 1, "dtype": "bf16", "iterations": ITERATIONS, "bare": True}
    reference, got = run_cases([{**case, "protected": False}, {**case, "plan": EVERY_COLLECTIVE}])
    for rank in range(2):
        assert len(got[rank]["recovered"]) >= 3
        assert got[rank]["digest"] == reference[rank]["digest"]
        assert got[rank]["losses"] == reference[rank]["losses"]
