"""A fresh process that begins in the middle: it continues with the losses and ends with the state of the run it joins.

Rank 0 plays the survivor (its slot holds everything), rank 1 the newcomer that gets what is unique from a slot and the
rest from its peer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CASES: dict[str, dict[str, Any]] = {
    "stage1-bf16": {"stage": 1, "dtype": "bf16", "save_at": 4},
    "before-the-first-iteration": {"stage": 1, "dtype": "bf16", "save_at": 0},
    "stage0-bf16-gas2": {"stage": 0, "dtype": "bf16", "gas": 2, "save_at": 4},
    "second-epoch-cpu-adam": {
        "stage": 0, "dtype": "fp32", "optimizer": "cpu_adam", "epochs": 2, "iterations": 4, "extra": 2, "save_at": 6,
    },
    "second-epoch-loader-processes": {
        "stage": 2, "dtype": "bf16", "epochs": 2, "iterations": 4, "extra": 2, "workers": 2, "save_at": 7,
    },
    "begin-of-second-epoch-persistent-processes": {
        "stage": 1, "dtype": "bf16", "epochs": 2, "iterations": 3, "workers": 2, "persistent": True, "save_at": 4,
    },
    "end-of-first-epoch": {"stage": 1, "dtype": "bf16", "epochs": 2, "iterations": 3, "save_at": 3},
    "limit": {"stage": 1, "dtype": "fp32", "epochs": 2, "iterations": 5, "limit": 3, "save_at": 5},
}  # fmt: skip


@pytest.mark.parametrize("names", [list(CASES)[:4], list(CASES)[4:]], ids=["first", "second"])
def test_newcomer_continues_exactly(names: list[str], run_cases: Callable[..., Any], tmp_path: Path) -> None:
    cases = []
    for name in names:
        case = {key: value for key, value in CASES[name].items() if key != "save_at"}
        cases.append({**case, "save_at": CASES[name]["save_at"], "save_to": str(tmp_path / name)})
        cases.append({**case, "resume_from": str(tmp_path / name)})
    results = run_cases(cases)
    for number, name in enumerate(names):
        for rank in range(2):
            whole, rest = results[2 * number][rank], results[2 * number + 1][rank]
            joined = {step: loss for step, loss in whole["losses"].items() if step in rest["losses"]}
            assert rest["losses"] == joined, name
            assert rest["digest"] == whole["digest"], name
            assert rest["evaluations"] == whole["evaluations"], f"{name}: random numbers after the loop"
            assert len(rest["losses"]) < len(whole["losses"]) or CASES[name]["save_at"] == 0, name
