"""Unmodified loops that fetch ahead, or whose batches come from no data loader.

A replacement goes on with the very next batch, or it is said in words that it cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ff_deepspeed.own_batches import combine

Case = dict[str, Any]
BASE: Case = {"unmodified": True, "stage": 1, "dtype": "bf16", "iterations": 7}
OWN = {**BASE, "loop": "own"}
AHEAD = {**BASE, "loop": "ahead"}
FOUND: dict[str, Case] = {
    "random": {**OWN, "batches": "random"},
    "registered": {**OWN, "batches": "registered"},
    "by step": {**OWN, "batches": "by step"},
    "one ahead": {**AHEAD, "batches": "one ahead"},
    "thread": {**AHEAD, "batches": "thread"},
}
VERSIONS = (0, 3)


def test_replacement_goes_on_with_the_very_next_batch(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    cases = []
    for name, case in FOUND.items():
        for version in VERSIONS:
            saved = str(tmp_path / f"{name}{version}")
            # Later it survives another failure like the others.
            cases += [{**case, "save_at": version, "save_to": saved}, {**case, "resume_from": saved, "plan": [[6, 2]]}]
    results = run_cases(cases)
    for number, (name, version) in enumerate((name, version) for name in FOUND for version in VERSIONS):
        for rank in range(2):
            whole, rest = results[2 * number][rank], results[2 * number + 1][rank]
            assert rest["losses"] == {k: v for k, v in whole["losses"].items() if int(k) > version}, (name, version)
            assert rest["digest"] == whole["digest"], name
            assert len(rest["recovered"]) == 1


# In front of collectives of an iteration, each once.
PLAN = [[2 + number // 2, number] for number in range(10)]


def test_survivors_repeat_the_right_batch(run_cases: Callable[..., Any]) -> None:
    cases = [*FOUND.values(), {**FOUND["one ahead"], "own_loss": True}]
    results = run_cases([one for case in cases for one in ({**case, "protected": False}, {**case, "plan": PLAN})])
    for number, case in enumerate(cases):
        for rank in range(2):
            reference, got = results[2 * number][rank], results[2 * number + 1][rank]
            assert len(got["recovered"]) >= 3
            assert got["digest"] == reference["digest"], case.get("batches")
            assert got["losses"] == reference["losses"], case.get("batches")


REFUSED = {
    "shards": r"client_state\(\) gives another \['position'\] right after engine\.step\(\).*ff_deepspeed\.batches\(",
    "shards-ahead": r"changes its \['position'\] between engine\(\.\.\.\) and engine\.step\(\).*deepspeed\.batches\(",
    "random-ahead": r"random numbers are drawn between engine\(\.\.\.\) and engine\.step\(\).*ff_deepspeed\.batches\(",
}


def test_batches_that_cannot_be_found_again_are_refused_in_the_first_iteration(run_cases: Callable[..., Any]) -> None:
    results = run_cases([{**OWN, "batches": name, "may_fail": True} for name in REFUSED])
    for (name, pattern), ranks in zip(REFUSED.items(), results, strict=True):
        for result in ranks:
            assert re.search(pattern, result["error"]), f"{name}: {result.get('error')}"


def test_replacement_with_other_batches_is_refused(run_cases: Callable[..., Any], tmp_path: Path) -> None:
    case = {**OWN, "batches": "forgotten"}  # a position that nobody is told
    saved = str(tmp_path / "saved")
    _, rest = run_cases([{**case, "save_at": 3, "save_to": saved}, {**case, "resume_from": saved, "may_fail": True}])
    for result in rest:
        assert re.search(
            r"does not go on.*engine\(\.\.\.\) is given another batch.*ff_deepspeed\.batches", result["error"]
        )


@pytest.mark.parametrize(
    ("before", "now", "expected", "unclear"),
    [
        ({"step": 3, "at": [1, 2]}, {"step": 3, "at": [1, 2]}, {"step": 3, "at": [1, 2]}, []),
        ({"step": 3}, {"step": 4}, {"step": 4}, []),  # counted after engine.step()
        ({"step": 4}, {"step": 5}, {"step": 4}, []),  # the loop's own number, one further in the next iteration
        ({"at": {"row": 7}}, {"at": {"row": 9}}, {"at": {"row": 7}}, ["['at']['row']"]),
        ({"best": 0.5, "all": [1]}, {"best": 0.4, "all": [1, 2]}, {"best": 0.5, "all": [1]}, ["['best']", "['all']"]),
        (None, None, None, []),
    ],
)
def test_client_state_of_a_version(before: Any, now: Any, expected: Any, unclear: list[str]) -> None:
    assert combine(before, now, steps=4) == (expected, unclear)
