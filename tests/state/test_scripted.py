"""Attributes of TorchScript modules. See `tests.state.kinds`."""

import io
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from ff_core.state import covered, switched
from tests.state.kinds import Look, Numbers, Scripts, repeated, replaced, right

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit goes, and people have it
SCRIPTS = script = Scripts()


class Counting(nn.Module):
    calls: int
    rates: list[float]

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.rates = [1.0]
        self.total = torch.zeros(2)
        self.register_buffer("mean", torch.zeros(2))
        self.inner = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.rates.append(self.rates[-1] / 2)
        self.total = self.total + x
        self.mean += x
        return x * self.calls * self.rates[-1] + self.total + self.mean


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])
    monkeypatch.setattr(switched, "_protected", [])


def scripted() -> Any:
    return torch.jit.script(Counting())


@script
def a_model_of_the_script(look: Look, numbers: Numbers) -> Any:
    model, seen = scripted(), [0.0]
    look(0)
    for n in numbers:
        seen.append(model(torch.full((2,), float(n))).sum().item())
        look(n)
    return seen, model.calls, model.rates


@script
def a_model_that_was_loaded(look: Look, numbers: Numbers) -> Any:
    file, seen = io.BytesIO(), [0.0]
    torch.jit.save(scripted(), file)
    file.seek(0)
    model: Any = nn.Sequential(torch.jit.load(file))
    look(0)
    for n in numbers:
        seen.append(model(torch.full((2,), float(n))).sum().item())
        look(n)
    return seen


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_those_of_a_protected_model(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def trains(look: Look, numbers: Numbers) -> Any:
        model = nn.Sequential(nn.Identity(), scripted())
        kept[:] = [model]
        monkeypatch.setattr(switched, "_protected", [weakref.ref(model)])
        look(0)
        for n in numbers:
            model(torch.full((2,), float(n)))
            look(n)
        inner: Any = model[1]
        return inner.calls, inner.rates, inner.total

    assert replaced(trains) == ([], right(trains))
    assert repeated(trains, monkeypatch) == ([], right(trains))
