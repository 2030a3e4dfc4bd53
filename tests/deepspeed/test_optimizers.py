"""Optimizers of every kind, interrupted in front of collectives: the bits of a run that was never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Case = dict[str, Any]

#: name -> the type in the configuration and its params, or what `worker.make_optimizer` calls it.
OPTIMIZERS: dict[str, Case] = {
    "AdamW": {"type": "AdamW", "torch_adam": True},
    "AdamW-fused": {"type": "AdamW", "torch_adam": True, "fused": True},
    "AdamW-foreach": {"type": "AdamW", "torch_adam": True, "foreach": True},
    "SGD-momentum": {"type": "SGD", "momentum": 0.9, "dampening": 0.5},
    "RMSprop": {"type": "RMSprop", "momentum": 0.9, "centered": True},
    "Adagrad": {"type": "Adagrad"},
    "NAdam": {"type": "NAdam"},
    "FusedAdam": {"type": "AdamW"},
    "FusedAdam-L2": {"type": "Adam", "adam_w_mode": False, "weight_decay": 0.1},
    "CPULion": {"given": "cpu_lion"},
    "CPUAdagrad": {"given": "cpu_adagrad"},
    "Muon": {"given": "muon"},
    "tensor as learning rate": {"given": "tensor_lr"},
    "number in an attribute": {"given": "numbered"},
}
#: One of each way to keep state. FusedAdam, which a configuration makes, and the others that are compiled: see setup.
QUICK = {"SGD-momentum", "Adagrad", "FusedAdam"}
LAYOUTS = [(0, "fp32"), (0, "bf16"), (1, "bf16"), (1, "fp32"), (2, "bf16")]
ONLY = {"Muon": LAYOUTS[:2]}  # ZeRO's partitions are no matrices
PLAN = [[1, 0], [1, 1], [2, 0], [3, 1], [4, 2]]


def case_of(name: str, stage: int, dtype: str) -> Case:
    params = dict(OPTIMIZERS[name])
    config: Case = {"zero_allow_untested_optimizer": True}
    given = params.pop("given", "json")
    if given == "json":
        config["optimizer"] = {"type": params.pop("type"), "params": {"lr": 0.01, **params}}
    return {"stage": stage, "dtype": dtype, "iterations": 6, "optimizer": given, "config": config}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in OPTIMIZERS]
)
def test_interrupted_run_has_the_same_bits(name: str, run_cases: Callable[..., Any]) -> None:
    cases = [case_of(name, stage, dtype) for stage, dtype in ONLY.get(name, LAYOUTS)]
    plain = [{**case, "protected": False} for case in cases]
    results = run_cases([*plain, *({**case, "plan": PLAN} for case in cases)])
    for number, case in enumerate(cases):
        for rank in range(2):
            reference, got = results[number][rank], results[len(cases) + number][rank]
            assert len(got["recovered"]) >= 3, case
            assert got["losses"] == reference["losses"], case
            assert got["digest"] == reference["digest"], case


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in OPTIMIZERS]
)
def test_newcomer_has_the_same_bits(name: str, run_cases: Callable[..., Any], tmp_path: Path) -> None:
    """Another process, whose optimizer has made no step, gets versions 0, 1 and 4 of rank 1."""
    cases = [case_of(name, stage, dtype) for stage, dtype in ONLY.get(name, LAYOUTS)[:3]]
    plan: list[Case] = []
    for number, case in enumerate(cases):
        plan.append({**case, "protected": False})
        for version in (0, 1, 4):
            saved = str(tmp_path / f"{number}-{version}")
            plan.append({**case, "save_at": version, "save_to": saved})
    whole = run_cases(plan)
    again = run_cases([{**c, "resume_from": c["save_to"]} for c in plan if "save_to" in c])
    for number, case in enumerate(cases):
        for rank in range(2):
            reference = whole[4 * number][rank]
            for place in range(3):
                assert whole[4 * number + 1 + place][rank]["digest"] == reference["digest"], case
                assert again[3 * number + place][rank]["digest"] == reference["digest"], (case, place)
