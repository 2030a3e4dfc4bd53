"""What cannot be protected is refused at initialize; loops that are written wrongly get an error that says how."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ff_deepspeed import versions

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "AutoEP": (
        {"config": {"expert_parallel": {"enabled": True}}},
        r"expert_parallel\.enabled = true: .*moe\.layer\.MoE in the model is.*\"enabled\": false",
    ),
    "quantized": (
        {"stage": 3, "zero": {"zero_quantized_weights": True}},
        r"zero_quantized_weights = true is not.*false is",
    ),
    "offloaded parameters": (
        {"stage": 2, "zero": {"offload_param": {"device": "cpu"}}},
        r"offload_param has no effect with stage = 2: .*remove it",
    ),
    "NVMe": (
        {"stage": 3, "zero": {"offload_param": {"device": "nvme", "nvme_path": "/tmp"}}},
        r'offload_param\.device = "nvme" is not supported: .*"cpu" is',
    ),
    "SuperOffload": (
        {"stage": 3, "zero": {"offload_optimizer": {"device": "cpu", "super_offload": True}}},
        r"offload_optimizer\.super_offload = true is not supported: .*process of its own; false is",
    ),
    "optimizer": ({"stage": 0, "dtype": "fp32", "optimizer": "counting"}, r"Counting: .*keeps state elsewhere.*AdamW"),
    "curriculum": ({"config": {"data_efficiency": {"enabled": True}}}, r"data_efficiency: curriculum sampling"),
    "accumulation": (
        {"config": {"managed_gradient_accumulation": False}},
        r"managed_gradient_accumulation = false is not supported",
    ),
    "wrong key": (
        {"config": {"ff_failover": {"enabled": True, "replica": 1}}},
        r"ConfigError: .*ff_failover\.replica = 1: no such field; did you mean 'replicas'",
    ),
    "Muon": (
        {"optimizer": "json", "config": {"optimizer": {"type": "Muon", "params": {"lr": 0.01}}}},
        r'"type": "Muon"\} keeps momentum .*Write "type": "AdamW" with "torch_adam": true',
    ),
    "collective in the data": (
        {"misuse": "collective in the data"},
        r"all_?reduce\(\) is called within the data loader, or.*inside `with ff_deepspeed\.iteration\(\):`",
    ),
    "several": (
        {"stage": 3, "zero": {"zero_quantized_weights": True}, "config": {"data_efficiency": {"enabled": True}}},
        r"zero_quantized_weights.*; data_efficiency.*",
    ),
}

MISUSES = {
    "no with": r"did not enter `with ff_deepspeed\.iteration\(\):`",
    "three of two": r"went on with engine\.step\(\) after its optimizer step.*gradient_accumulation_steps = 2",
    "own count": r"set_gradient_accumulation_boundary\(\) is called.*steps = 2.*accelerator\.accumulate\(\)",
    "resized": r"changed gradient_accumulation_steps from 2 to 1 within.*limit=",
    "nested": r"batches\(\) inside another ff_deepspeed\.batches\(\) loop",
    "with twice": r"belongs once into the body",
    "with outside": r"belongs once into the body",
    "second engine": r"second DeepSpeed engine is trained.*keeps state elsewhere.*for all engines",
    "reference under ZeRO-3": r"second DeepSpeed engine, which is not trained, uses ZeRO-3.*with ZeRO stage 0",
    "gathering loader": r"scripts\.py:\d+: UlyssesSPDataLoaderAdapter gathers .*x\.chunk\(sp_size, dim=1\)",
    "no engine": r"batches\(engine=list\): allowed: the engine of deepspeed\.initialize",
    "own error": r"^ValueError: the script's own$",
    "limit": r"batches\(limit=-1\): allowed: a whole number >= 0, or None",
}


PIPELINES = {
    "through_a_list": r"pipelines\.py:\d+: train_batch\(\) is given a list_iterator.*train_batch\(iter\(batches\)\)",
    "through_new_generators": r"pipelines\.py:\d+: train_batch\(\) is given another iterator than in the step before",
    "counted_by_a_generator": r"the loop at .*pipelines\.py:\d+ goes over a generator.*engine\.global_steps < n",
    "called_by_a_library": r"train_batch\(\) is called by .*mock\.py:\d+, which belongs to a library",
    "evaluated_first": r"pipelines\.py:\d+: eval_batch\(\) before the first train_batch\(\).*behind a train_batch",
    "own_loader_in_the_exact_loop": r"train_batch\(\) without an iterator.*engine\.train_batch\(iter\(batches\)\)",
    "same_iterator_in_the_exact_loop": r"or with one that it was given in the item before",
}

RIGHT = ("no step", "proxy", "compiled", "whole items", "break", "nothing", "reference")


#: What DeepSpeed 0.18 does not have, and so leaves out.
NEWER = ("AutoEP", "accumulation")


def test_what_cannot_be_protected_is_refused(run_cases: Callable[..., Any]) -> None:
    cases = [{"stage": 1, "dtype": "bf16", "may_fail": True, **case} for case, _ in REFUSED.values()]
    results = run_cases(cases, world=1)
    pairs = zip(REFUSED.items(), results, strict=True)
    missed = {n: r for (n, (_, pattern)), (r,) in pairs if not re.search(pattern, r.get("error", ""))}
    assert not {name for name in missed if name not in NEWER or versions.is_newer()}, missed


def test_torch_adam_is_the_way_out(run_cases: Callable[..., Any]) -> None:
    """What the refusal of Muon advises."""
    optimizer = {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}}
    case = {"stage": 2, "dtype": "bf16", "gas": 2, "optimizer": "json", "config": {"optimizer": optimizer}}
    reference, got = run_cases([{**case, "protected": False}, {**case, "plan": [[2, 1], [4, 3], [5, 4]]}])
    for rank in range(2):
        assert len(got[rank]["recovered"]) == 3
        assert got[rank]["digest"] == reference[rank]["digest"]


def test_wrong_loops_are_explained(run_cases: Callable[..., Any]) -> None:
    cases = [{"stage": 1, "dtype": "bf16", "may_fail": True, "misuse": how} for how in MISUSES]
    for how in ("three of two", "own count", "resized"):
        cases[list(MISUSES).index(how)]["gas"] = 2
    right = [{"stage": 1, "dtype": "bf16", "misuse": how} for how in RIGHT]
    results = run_cases([*cases, *right], world=1)
    for (how, pattern), (result,) in zip(MISUSES.items(), results, strict=False):
        assert re.search(pattern, result["error"]), f"{how}: {result['error']}"
    # A loop that is left by `break` is over like any other: its last iteration is sealed, everybody is waited for.
    # No step is no mistake by itself: all ranks may skip a batch.
    steps = {how: result["steps"] for how, (result,) in zip(RIGHT, results[len(MISUSES) :], strict=True)}
    assert steps == {**dict.fromkeys(RIGHT, 4), "no step": 0, "break": 1}
    for how, (result,) in zip(RIGHT, results[len(MISUSES) :], strict=True):
        assert (result["error"], result["finished"]) == ("", 1)
        assert result["slots"] == (1 if how == "no step" else 2)


def test_loops_around_a_pipeline(run_cases: Callable[..., Any]) -> None:
    cases = [{"pipeline": loop, "may_fail": True} for loop in PIPELINES]
    right = [{"pipeline": loop} for loop in ("exact", "over_a_range", "while_it_lasts")]
    offload = {"zero": {"offload_optimizer": {"device": "cpu"}}}
    refused = [{"stage": 2}, {"config": {"fp16": {"enabled": True}}}, offload]
    refused = [{"pipeline": "exact", "may_fail": True, **case} for case in refused]
    results = run_cases([*cases, *right, *refused], world=1)
    for (loop, pattern), (result,) in zip(PIPELINES.items(), results, strict=False):
        assert re.search(pattern, result["error"]), f"{loop}: {result['error']}"
    assert [result["steps"] for (result,) in results[len(PIPELINES) : -3]] == [3, 3, 3]
    words = [result["error"] for (result,) in results[-3:]]
    assert "ZeRO-3 are incompatible with pipeline parallelism" in words[0]  # DeepSpeed's own
    assert "fp16.enabled with a PipelineModule is not supported yet; bf16 is" in words[1]
    assert "offload_optimizer with a PipelineModule is not supported yet" in words[2]


def test_checkpoints_on_disk_every_period(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    case = {"stage": 1, "dtype": "bf16", "iterations": 7, "persist": {"directory": str(tmp_path / "disk"), "period": 3}}
    ((result,),) = run_cases([case], world=1)
    assert result["persisted_at"] == [3, 6]
    assert {"global_step3", "global_step6", "latest"} <= set(result["checkpoints"])
