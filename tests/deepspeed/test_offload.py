"""The optimizer on the host, with ZeRO-1 and 2, or a part of it (twin-flow): interrupted in front of collectives, and
joined by a replacement."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deepspeed.same import are_the_same

Case = dict[str, Any]
TO_CPU = {"offload_optimizer": {"device": "cpu"}}
PINNED = {"offload_optimizer": {"device": "cpu", "pin_memory": True}}

LAYOUTS: dict[str, Case] = {
    "zero2-bf16-gas2": {"stage": 2, "dtype": "bf16", "gas": 2, "optimizer": "cpu_adam", "zero": TO_CPU},
    "zero2-fp32-overlap-small-buckets": {
        "stage": 2, "dtype": "fp32", "optimizer": "cpu_adam",
        "zero": {**PINNED, "overlap_comm": True, "reduce_bucket_size": 300},
    },
    "zero2-bf16-adamw-of-the-configuration": {
        "stage": 2, "dtype": "bf16", "optimizer": "json", "zero": PINNED, "config": {"optimizer": {"type": "AdamW"}},
    },
    "zero1-bf16-gas2": {"stage": 1, "dtype": "bf16", "gas": 2, "optimizer": "cpu_adam", "zero": TO_CPU},
    "zero1-fp32-no-clipping": {"stage": 1, "dtype": "fp32", "optimizer": "cpu_adam", "zero": TO_CPU, "clip": 0.0},
}  # fmt: skip
#: Several sub-groups, the first half of them on the other device. The scheduler knows nothing of what steps them there.
TWIN = {
    "stage": 3, "optimizer": "cpu_adam", "two_devices": True,
    "zero": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}, "sub_group_size": 100,
             "stage3_param_persistence_threshold": 64},
}  # fmt: skip
LAYOUTS |= {
    "zero3-twin-flow-bf16-gas2": {**TWIN, "dtype": "bf16", "gas": 2},
    "zero3-twin-flow-fp32": {**TWIN, "dtype": "fp32"},
    "zero3-twin-flow-fp16-one-group": {**TWIN, "dtype": "fp16", "one_group": True, "overflow": [[1, 0], [4, 1]]},
}
QUICK = ("zero3-twin-flow-bf16-gas2", "zero2-bf16-gas2", "zero2-fp32-overlap-small-buckets", "zero1-bf16-gas2")
MORE = tuple(name for name in LAYOUTS if name not in QUICK)
#: One or two in each iteration.
PLAN = [[2 + number // 2, number] for number in range(12)]
ITERATIONS = 10


@pytest.mark.parametrize("names", [QUICK, pytest.param(MORE, marks=pytest.mark.slow)], ids="+".join)
def test_interrupted_run_equals_uninterrupted_run(names: tuple[str, ...], run_cases: Callable[..., Any]) -> None:
    base = [{"iterations": ITERATIONS, **LAYOUTS[name]} for name in names]
    results = run_cases([*({**case, "protected": False} for case in base), *({**case, "plan": PLAN} for case in base)])
    for number, name in enumerate(names):
        for rank in range(2):
            reference, got = results[number][rank], results[len(names) + number][rank]
            assert len(got["recovered"]) >= min(6, reference["collectives"]), name
            assert got["losses"] == reference["losses"], f"{name}, rank {rank}"
            assert got["digest"] == reference["digest"], f"{name}, rank {rank}"
            assert len(reference["losses"]) == ITERATIONS


def test_newcomer_continues_exactly(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    names, cases = ("zero2-bf16-gas2", "zero1-bf16-gas2", *(name for name in LAYOUTS if "twin-flow" in name)), []
    for name in names:
        cases.append({**LAYOUTS[name], "save_at": 3, "save_to": str(tmp_path / name)})
        cases.append({**LAYOUTS[name], "resume_from": str(tmp_path / name)})
    results = run_cases(cases)
    for number, name in enumerate(names):
        for rank in range(2):
            whole, rest = results[2 * number][rank], results[2 * number + 1][rank]
            assert rest["losses"] == {step: loss for step, loss in whole["losses"].items() if step in rest["losses"]}
            assert 0 < len(rest["losses"]) < len(whole["losses"]), name
            assert rest["digest"] == whole["digest"], name


def test_gradients_of_an_earlier_iteration_are_refused(run_cases: Callable[..., Any]) -> None:
    """What DeepSpeed takes for a parameter without one. The remedy, and a layer that never runs, are exact."""
    base = {"stage": 2, "dtype": "fp32", "zero": TO_CPU, "optimizer": "cpu_adam", "gas": 2}
    wrong = [{**base, "sometimes": how, "may_fail": True} for how in ("skips", "frozen", "first", "second")]
    right = [{**base, "sometimes": how, "plan": [[4, 1], [5, 3]]} for how in ("zero", "never")]
    skips, frozen, first, second, *others = run_cases(
        [*wrong, *right, *({**case, "plan": [], "protected": False} for case in right)]
    )
    for rank in range(2):
        for whole in (skips, frozen):
            assert re.search(
                r"extra\.weight, extra\.bias got no gradient in iteration 3, after .*0\.0", whole[rank]["error"]
            )
        assert re.search(r"extra\.bias got .* in iteration 3's last micro-batch, after", first[rank]["error"])
        assert re.search(r"extra\.bias got .* in iteration 3's first micro-batch, after", second[rank]["error"])
    are_the_same(others[:2], others[2:], recovered=2)


def test_calls_of_an_unmodified_loop_are_made_again(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """Interrupted, and joined by a replacement."""
    base = {"stage": 2, "dtype": "bf16", "zero": TO_CPU, "optimizer": "cpu_adam", "unmodified": True, "iterations": 6}
    saved = {"save_at": 4, "save_to": str(tmp_path / "slot")}
    reference, again, whole, rest = run_cases(
        [
            {**base, "protected": False},
            {**base, "plan": PLAN[:8]},
            {**base, **saved},
            {**base, "resume_from": saved["save_to"]},
        ]
    )
    for rank in range(2):
        assert len(again[rank]["recovered"]) >= 3
        for got in (again, whole, rest):
            assert got[rank]["digest"] == reference[rank]["digest"]
