"""Versions of DeepSpeed: which are allowed, and what is looked at in those that were not tested."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import pytest
from deepspeed.runtime.engine import DeepSpeedEngine

from ff_core.errors import UnsupportedError
from ff_deepspeed import versions
from tests.deepspeed.tested import tested_only

ROOT = Path(__file__).parents[2]
CPU_ADAM = {"optimizer": "cpu_adam", "zero": {"offload_optimizer": {"device": "cpu"}}}
JSON = {"optimizer": "json", "config": {"optimizer": {"type": "AdamW"}}}
FP32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}}

#: Every optimizer that DeepSpeed makes of one.
LAYOUTS: list[dict[str, Any]] = [
    {"stage": 0, "dtype": "fp32"},
    {"stage": 0, "dtype": "fp32", **JSON},
    {"stage": 0, "dtype": "bf16"},
    {"stage": 0, "dtype": "fp16", **JSON},
    {"stage": 1, "dtype": "fp16"},
    {"stage": 1, "dtype": "bf16", "config": FP32_GRADIENTS},
    {"stage": 2, "dtype": "bf16", **CPU_ADAM},
    {"stage": 3, "dtype": "bf16"},
    {"stage": 3, "dtype": "fp16", **CPU_ADAM},
]


@pytest.mark.parametrize("version", ["0.18.9", "0.18.10", "0.19.0", "0.19.8+abc", "0.20.0", "1.0.0"])
def test_allowed(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(deepspeed, "__version__", version)
    versions.check()


@pytest.mark.parametrize("version", ["0.18.8", "0.17.6", "0.9.5"])
def test_older_ones_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(deepspeed, "__version__", version)
    with pytest.raises(
        UnsupportedError, match=rf"DeepSpeed {version} cannot be protected; allowed: 0\.18\.9 and newer"
    ):
        versions.check()


def test_set_up_installs_the_newest_that_is_tested() -> None:
    assert f'DEEPSPEED = "{versions.TESTED[-1]}"' in (ROOT / "scripts/setup_env.py").read_text()
    assert f"deepspeed=={versions.TESTED[-1]}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert f'"deepspeed>={versions.OLDEST}"' in (ROOT / "setup.py").read_text()
    assert f"make test DEEPSPEED={versions.OLDEST} " in (ROOT / "CONTRIBUTING.md").read_text()


@tested_only
def test_what_the_engine_of_another_version_has_is_looked_at(run_cases: Callable[..., Any]) -> None:
    """Of the installed one everything is known, whatever optimizer it makes."""
    other = {"version": "0.99.0", "misuse": "nothing", "may_fail": True}
    zero1 = {"stage": 1, "dtype": "bf16", **other}
    pipeline = {"pipeline": "over_a_range", "version": "0.99.0", "may_fail": True}
    *fine, more, more_of_the_engine, less = run_cases(
        [
            *({**layout, **other} for layout in LAYOUTS),
            pipeline,
            {**zero1, "has": ["DeepSpeedZeroOptimizer", "sent_early"]},
            {**zero1, "has": ["DeepSpeedEngine", "own_count"]},
            {**zero1, "lacks": ["DeepSpeedZeroOptimizer", "extra_large_param_to_reduce"]},
        ],
        world=1,
    )
    assert [result["error"] for (result,) in fine] == [""] * (len(LAYOUTS) + 1)
    for (result,), words in (
        (more, r"DeepSpeed 0\.99\.0 has DeepSpeedZeroOptimizer\.sent_early, which FFTrainer does not know"),
        (more_of_the_engine, r"DeepSpeed 0\.99\.0 has DeepSpeedEngine\.own_count, which"),
        (less, r"DeepSpeed 0\.99\.0 has no DeepSpeedZeroOptimizer\.extra_large_param_to_reduce, which"),
    ):
        assert re.search(words, result["error"]), result["error"]
        assert f"pip install 'deepspeed=={versions.TESTED[-1]}'" in result["error"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"progressive_layer_drop": {"enabled": True, "theta": 0.5}}, "progressive_layer_drop"),
        ({"sparse_gradients": True}, "sparse_gradients"),
        ({"compression_training": {"weight_quantization": {}}}, "compression_training"),
        ({"zero_optimization": {"mics_shard_size": 2}}, r"zero_optimization\.mics_shard_size"),
    ],
)
def test_what_newer_versions_have_dropped_is_refused(fields: dict[str, Any], name: str) -> None:
    (words,) = versions.obstacles_in(fields)
    assert re.match(rf"{name} is not supported: .*remove it", words)


def test_gradients_that_would_be_divided_twice_are_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in 0.18, where the outputs of the model divide them."""
    accumulates, not_so = ({"gradient_accumulation_steps": steps} for steps in (2, 1))
    monkeypatch.setattr(
        DeepSpeedEngine, "_backward_prologue_per_tensor", lambda self, gradient: self._scale_wrt_gas and gradient
    )
    words = versions.own_loss_obstacle(accumulates)
    assert words is not None and "divided twice. Let the model return the loss" in words
    assert versions.own_loss_obstacle(not_so) is None
    monkeypatch.setattr(DeepSpeedEngine, "_backward_prologue_per_tensor", lambda self, gradient: gradient)
    assert versions.own_loss_obstacle(accumulates) is None


def test_what_is_switched_off_is_no_obstacle() -> None:
    off = {"elasticity": {"enabled": False}, "sparse_gradients": False, "zero_optimization": {"mics_shard_size": -1}}
    assert not list(versions.obstacles_in(off))
