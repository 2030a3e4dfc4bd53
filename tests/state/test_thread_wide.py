"""What a script switches for its training thread. See `tests.state.kinds`."""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.state import covered
from ff_core.state.thread_wide import OfThisThread
from tests.state.kinds import Look, Numbers, repeated, replaced, right

OTHERS = {
    "autocast_dtypes": "torch.float16 torch.bfloat16", "decimal_precision": 7, "decimal_rounding": "ROUND_UP",
    "recursion_limit": 1500, "numpy_errors": "raise,warn,ignore,ignore",
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(covered, "_trainers", [])
    place = OfThisThread()
    before = dict(place.values({}))
    yield
    place.write({}, before)


@pytest.mark.parametrize("name", OfThisThread().values({}))
def test_each_can_be_put_back(name: str) -> None:
    place = OfThisThread()
    before = place.values({})
    other = OTHERS.get(name, not before[name])
    place.write({}, {name: other})
    assert place.values({})[name] == other != before[name]
    place.write({}, dict(before))
    assert place.values({}) == before


def test_what_is_switched_is_what_counts() -> None:
    place = OfThisThread()
    with torch.no_grad(), torch.autocast("cpu", torch.float16), decimal.localcontext() as context:
        context.prec = 5
        with np.errstate(all="raise"):
            inside = dict(place.values({}))
    place.write({}, inside)
    assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    assert torch.get_autocast_dtype("cpu") is torch.float16
    assert decimal.Decimal(1) / 3 == decimal.Decimal("0.33333") and set(np.geterr().values()) == {"raise"}


def test_nothing_is_looked_at_while_nothing_is_switched() -> None:
    place = OfThisThread()
    assert place.values({}) is place.values({})


def switches(look: Look, numbers: Numbers) -> Any:
    weight, total = torch.ones(1, requires_grad=True), [0.0]
    look(0)
    for n in numbers:
        total.append(float(decimal.Decimal(n) / 7) + 2 * (weight * n).requires_grad)
        decimal.getcontext().prec = 3 + n
        torch.set_grad_enabled(n % 3 != 1)
        look(n)
    torch.set_grad_enabled(True)
    decimal.getcontext().prec = 28
    return total


def test_a_replacement_and_a_survivor_go_on_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replaced(switches) == ([], right(switches))
    assert repeated(switches, monkeypatch) == ([], right(switches))
