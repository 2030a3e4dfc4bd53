"""Optimizers of every kind, interrupted in front of collectives: the bits of a run that was never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Case = dict[str, Any]

#: name -> (type in the configuration, its params, quick). One is quick of each way to keep state.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "AdamW": ("AdamW", {"torch_adam": True}, False),
    "AdamW-fused": ("AdamW", {"torch_adam": True, "fused": True}, False),
    "AdamW-foreach": ("AdamW", {"torch_adam": True, "foreach": True}, False),
    "SGD-momentum": ("SGD", {"momentum": 0.9, "dampening": 0.5}, True),
    "RMSprop": ("RMSprop", {"momentum": 0.9, "centered": True}, True),
    "Adagrad": ("Adagrad", {}, True),
    "NAdam": ("NAdam", {}, False),
    "FusedAdam": ("AdamW", {}, False),  # compiles an operator that setup does not
}
LAYOUTS = [(0, "fp32"), (0, "bf16"), (1, "bf16"), (1, "fp32"), (2, "bf16")]
PLAN = [[1, 0], [1, 1], [2, 0], [3, 1], [4, 2]]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if OPTIMIZERS[n][2] else [pytest.mark.slow]) for n in OPTIMIZERS]
)
def test_interrupted_run_has_the_same_bits(name: str, run_cases: Callable[..., Any]) -> None:
    kind, params, _ = OPTIMIZERS[name]
    config = {"optimizer": {"type": kind, "params": {"lr": 0.01, **params}}, "zero_allow_untested_optimizer": True}
    cases: list[Case] = [
        {"stage": stage, "dtype": dtype, "iterations": 6, "optimizer": "json", "config": config}
        for stage, dtype in LAYOUTS
    ]
    plain = [{**case, "protected": False} for case in cases]
    results = run_cases([*plain, *({**case, "plan": PLAN} for case in cases)])
    for number, case in enumerate(cases):
        for rank in range(2):
            reference, got = results[number][rank], results[len(cases) + number][rank]
            assert len(got["recovered"]) >= 3, case
            assert got["losses"] == reference["losses"], case
            assert got["digest"] == reference["digest"], case
