"""What a script keeps in Megatron's arguments."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from ff_core.state import covered, spaces
from ff_megatron.arguments import OfArguments
from tests.state.kinds import Look, Numbers, repeated, replaced, right

ARGS = Namespace()


@pytest.fixture(autouse=True)
def as_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])
    monkeypatch.setattr(covered, "_themselves", [ARGS])
    monkeypatch.setattr(spaces, "more", [lambda: OfArguments(ARGS)])


def keeps(look: Look, numbers: Numbers) -> Any:
    ARGS.__dict__.clear()
    ARGS.__dict__.update({"iteration": 3, "stage": 0, "seen": {"tokens": 0}, "lr": 0.5})
    look(0)
    for n in numbers:
        ARGS.stage += n
        ARGS.seen["tokens"] += n
        ARGS.iteration = 7  # Megatron's own
        ARGS.late = getattr(ARGS, "late", 0) + n
        look(n)
    return ARGS.stage, ARGS.seen, ARGS.late


def test_a_replacement_goes_on_with_them() -> None:
    assert replaced(keeps) == ([], right(keeps))


def test_a_survivor_repeats_an_iteration_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(keeps, monkeypatch) == ([], right(keeps))


def test_what_megatron_counts_is_its_own() -> None:
    keeps(lambda at: None, [1])
    assert {"iteration", "lr"}.isdisjoint(OfArguments(ARGS).values({}))
