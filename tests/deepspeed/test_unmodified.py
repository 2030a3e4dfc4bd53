"""The unmodified loop in the usual resume style, interrupted in the middle of its calls, and joined by newcomers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.deepspeed.tested import own_loss

Case = dict[str, Any]

# In front of collectives of an iteration, each once; gas 2 counts anew in each micro-step.
EVERYWHERE = [[2 + number // 2, number] for number in range(16)]


def same(reference: list[Case], got: list[Case]) -> None:
    for rank in range(2):
        assert got[rank]["losses"] == reference[rank]["losses"], f"rank {rank}"
        assert got[rank]["digest"] == reference[rank]["digest"], f"rank {rank}"
        assert got[rank]["steps_seen"] == reference[rank]["steps_seen"]


def test_interrupted_calls_are_made_again(run_cases: Callable[..., Any]) -> None:
    one = {"unmodified": True, "stage": 1, "dtype": "bf16", "iterations": 8}
    two = {"unmodified": True, "stage": 2, "dtype": "bf16", "iterations": 5, "gas": 2, "epochs": 2}
    zero = {"unmodified": True, "stage": 0, "dtype": "fp32", "iterations": 8, "optimizer": "cpu_adam", "as_dict": True}
    results = run_cases(
        [
            {**one, "protected": False},
            {**one, "plan": EVERYWHERE},
            {**one, "plan": EVERYWHERE, "behind": 1},
            {**two, "protected": False},
            {**two, "plan": EVERYWHERE},
            {**two, "plan": EVERYWHERE, "behind": 1},
            {**zero, "protected": False},
            {**zero, "plan": EVERYWHERE},
        ]
    )
    for reference, got in ((0, 1), (0, 2), (3, 4), (3, 5), (6, 7)):
        same(results[reference], results[got])
        assert len(results[got][0]["recovered"]) >= 4
    # v* was further back than the iteration that was interrupted: whole iterations were made again.
    assert results[2][0]["recovered"] != results[1][0]["recovered"]


def test_what_the_script_switches_stays_as_it_left_it(run_cases: Callable[..., Any]) -> None:
    """A survivor goes on where it was interrupted: in evaluation, or with a layer frozen. Repeated calls see what the
    first ones saw."""
    case = {"unmodified": True, "stage": 0, "dtype": "fp32", "iterations": 8, "switches": True}
    plan = [[2 + number // 3, number] for number in range(18)]
    reference, *others = run_cases(
        [{**case, "protected": False}, {**case, "plan": plan}, {**case, "plan": plan, "behind": 1}]
    )
    for got in others:
        same(reference, got)
        assert len(got[0]["recovered"]) >= 3


def test_gradients_that_the_script_writes_are_written_again(run_cases: Callable[..., Any]) -> None:
    zero0 = {"unmodified": True, "stage": 0, "dtype": "fp32", "iterations": 6, "clip": 0.0}
    zero1 = {**zero0, "stage": 1}
    cases = [{**zero0, "gradients": "in place"}, {**zero0, "gradients": "data"}, {**zero1, "gradients": "in place"}]
    results = run_cases(
        [{**case, "protected": False} for case in cases]
        + [{**case, "plan": EVERYWHERE} for case in cases]
        + [{**zero0, "protected": False}]
    )
    for reference, got in zip(results[:3], results[3:6], strict=True):
        same(reference, got)
        assert len(got[0]["recovered"]) >= 2
    assert results[6][0]["digest"] != results[0][0]["digest"], "what the script writes matters"


def test_accumulation_that_the_script_changes_comes_back(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    case = {"unmodified": True, "stage": 1, "dtype": "fp32", "iterations": 5, "gas": 2, "switches": "resize"}
    plan = [[2 + number // 2, number] for number in range(8)]
    saved = str(tmp_path / "saved")
    reference, *others, newcomers = run_cases(
        [
            {**case, "protected": False},
            {**case, "plan": plan},
            {**case, "plan": plan, "behind": 1},
            {**case, "save_at": 4, "save_to": saved},
            {**case, "resume_from": saved},
        ]
    )
    for got in others:
        same(reference, got)
    assert len(others[0][0]["recovered"]) >= 3
    for rank in range(2):
        assert newcomers[rank]["digest"] == reference[rank]["digest"]


def test_loop_by_steps_with_deepspeeds_loader_and_checkpoints(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    case = {"unmodified": True, "stage": 1, "dtype": "bf16", "iterations": 8, "directory": str(tmp_path / "disk")}
    saved = str(tmp_path / "slot")
    plan = [[2, 0], [3, 5], [4, 7], [4, 8], [6, 9], [6, 11], [7, 6]]
    reference, broken, further, _, rest = run_cases(
        [
            {**case, "protected": False},
            {**case, "plan": plan},
            {**case, "plan": plan, "behind": 1},
            {**case, "save_at": 4, "save_to": saved},
            {**case, "resume_from": saved},
        ]
    )
    same(reference, broken)
    same(reference, further)
    assert len(broken[0]["recovered"]) >= 6
    for rank in range(2):
        # Version 4 was saved to disk by the script itself: its client state is known without a registered function.
        assert rest[rank]["digest"] == reference[rank]["digest"]
        assert rest[rank]["losses"] == {k: v for k, v in reference[rank]["losses"].items() if int(k) > 4}


@own_loss
def test_a_loss_of_the_script_s_own_is_repeated_too(run_cases: Callable[..., Any]) -> None:
    """No call of the script gives it a made-up value: losses, weights and its own counter are those of an undisturbed
    run, wherever it was interrupted."""
    one = {"unmodified": True, "stage": 1, "dtype": "bf16", "iterations": 8, "own_loss": True}
    two = {**one, "stage": 2, "iterations": 5, "gas": 2, "epochs": 2}
    results = run_cases(
        [
            {**one, "protected": False},
            {**one, "plan": EVERYWHERE},
            {**one, "plan": EVERYWHERE, "behind": 1},
            {**two, "protected": False},
            {**two, "plan": EVERYWHERE, "behind": 1},
        ]
    )
    for reference, got in ((0, 1), (0, 2), (3, 4)):
        same(results[reference], results[got])
        assert len(results[got][0]["recovered"]) >= 4


def test_a_forward_pass_that_counts_by_itself_is_told(run_cases: Callable[..., Any]) -> None:
    """The loss of a repeated iteration is compared with the first one. What the message advises is right."""
    base = {"unmodified": True, "stage": 1, "dtype": "fp32", "iterations": 5, "plan": [[3, 2]]}
    right = {**base, "counts": "in an attribute"}
    cases = [{**base, "counts": "in a variable", "may_fail": True}, right, {**right, "plan": [], "protected": False}]
    variable, attribute, reference = run_cases(cases)
    for rank in range(2):
        assert re.search(r"its loss is .* that was .* at first: .*an attribute or a buffer", variable[rank]["error"])
    same(reference, attribute)
    assert attribute[0]["recovered"]


def test_a_backward_pass_that_the_engine_does_not_see_is_refused(run_cases: Callable[..., Any]) -> None:
    """DeepSpeed allows `loss.backward()`, and it could not be made again."""
    case = {"unmodified": True, "stage": 1, "dtype": "fp32", "iterations": 3, "past the engine": True, "may_fail": True}
    (result,) = run_cases([case])
    for rank in result:
        assert "engine.step() comes without an engine.backward(loss) before it" in rank["error"]


def test_a_loop_that_cannot_be_resumed_trains_with_a_warning(run_cases: Callable[..., Any]) -> None:
    """Before anything has happened, saying what a failure leads to; without one where the script does as advised."""
    base = {"unmodified": True, "stage": 1, "dtype": "bf16", "iterations": 3, "said": True}
    the_end = {**base, "load": False, "may_restart": False}
    told = {**base, "client_state": False}
    warned, quiet, ends, half = run_cases(
        [{**base, "load": False}, {**base, "load": True, "may_restart": False}, the_end, told]
    )
    for rank in range(2):
        words = r"training begins at .*worker\.py:\d+, .*first failure would end this job.*--max-restarts N.*batches\("
        assert re.search(words, " ".join(ends[rank]["said"]))
        words = r"not called engine\.load_checkpoint\(\).*--max-restarts\).*client_state.*batches\("
        assert re.search(words, " ".join(warned[rank]["said"]))
        assert quiet[rank]["said"] == []
        assert re.search(r"registered no client state.*client_state\(lambda", " ".join(half[rank]["said"]))
        assert warned[rank]["losses"] == quiet[rank]["losses"] == ends[rank]["losses"]


def test_newcomer_is_answered_from_memory(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    base = {"unmodified": True, "stage": 1, "dtype": "bf16", "iterations": 5, "epochs": 2}
    variants: dict[str, tuple[Case, int]] = {
        "second-epoch": (base, 7),
        "between-epochs": ({**base, "workers": 2}, 5),
        "start": (base, 0),
        "end": ({**base, "gas": 2}, 10),
    }
    cases = []
    for name, (case, version) in variants.items():
        cases += [{**case, "save_at": version, "save_to": str(tmp_path / name)}]
        cases += [{**case, "resume_from": str(tmp_path / name)}]
    start = {**base, "resume_from": str(tmp_path / "start"), "load": False}
    no_load = {**base, "resume_from": str(tmp_path / "second-epoch"), "may_fail": True, "load": False}
    silent = {**base, "client_state": False, "epochs": 1}
    cases += [start, no_load, {**silent, "save_at": 2, "save_to": str(tmp_path / "silent")}]
    results = run_cases([*cases, {**silent, "resume_from": str(tmp_path / "silent"), "may_fail": True}])
    for number, (name, (_, version)) in enumerate(variants.items()):
        for rank in range(2):
            whole, rest = results[2 * number][rank], results[2 * number + 1][rank]
            assert rest["digest"] == whole["digest"], name
            assert rest["losses"] == {k: v for k, v in whole["losses"].items() if int(k) > version}, name
    # At version 0 the script simply starts.
    same(results[4], results[-4])
    for rank in range(2):
        error = results[-3][rank]["error"]
        assert "at step 7" in error
        assert "load_checkpoint" in error
        assert "ff_deepspeed.batches" in error
        error = results[-1][rank]["error"]
        assert "ff_deepspeed.client_state" in error
        assert "of step 0, the job is at step 2" in error
