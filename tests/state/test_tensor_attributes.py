"""What a script gives to tensors. See `tests.state.kinds`."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from ff_core.state import covered, switched, tensor_attributes
from tests.state.kinds import Look, Numbers, Scripts, right


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])


def protected(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that an adapter protects; those of earlier runs have gone."""
    kept: list[nn.Module] = []

    def leave_out(model: nn.Module) -> None:
        kept[:] = [model]
        monkeypatch.setattr(switched, "_protected", [weakref.ref(model)])

    monkeypatch.setattr(switched, "leave_out", leave_out)
    return kept


SCRIPTS = script = Scripts(protected)


@script
def of_parameters(look: Look, numbers: Numbers) -> Any:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    switched.leave_out(model)
    model[0].weight.scale = 1.0
    model[0].weight.momentum = torch.zeros(2)
    model[1].running_mean.seen = [0]
    look(0)
    for n in numbers:
        model[0].weight.scale /= 2
        model[0].weight.momentum.mul_(0.5).add_(n)
        model[1].running_mean.seen.append(n)
        if n == 2:
            model[0].bias.limit = 0.5
        if n > 2:
            model[0].bias.limit += n
        for parameter in model.parameters():
            parameter.average = 0.9 * getattr(parameter, "average", torch.zeros(70_000)) + n
        look(n)
    found = [model[0].weight.scale, model[0].weight.momentum.tolist(), model[1].running_mean.seen, model[0].bias.limit]
    return found, [float(parameter.average[5]) for parameter in model.parameters()]


@script
def of_variables(look: Look, numbers: Numbers) -> Any:
    table: Any = torch.zeros(2)
    weights: Any = {"a": torch.zeros(1)}
    table.decay, table.twin = 0.5, weights["a"]
    weights["a"].steps, weights["a"].twin = 0, table
    look(0)
    for n in numbers:
        table.decay *= 0.5
        weights["a"].steps += n
        look(n)
    return table.decay, weights["a"].steps, table.twin.steps


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_the_script_of_parameters_has_a_model_that_is_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = protected(monkeypatch)
    right(of_parameters)
    assert kept


def test_what_a_framework_has_given_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    protected(monkeypatch)
    model: Any = nn.Linear(2, 2)
    switched.leave_out(model)
    setattr(model.weight, "".join(["of", "_a_framework"]), 1)
    model.weight.of_the_script = 1
    model.weight.ds_status = 1
    place = tensor_attributes.OfTensors()
    assert place.known == ["weight.of_the_script"]


def test_new_ones_are_seen_early_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    protected(monkeypatch)
    model: Any = nn.Linear(2, 2)
    switched.leave_out(model)
    place = tensor_attributes.OfTensors()
    assert place.values({}) == {}
    model.weight.early = 1
    assert place.values({}) == {"weight.early": 1}
    for _ in range(100):
        place.values({})
    model.weight.late = 2
    seen = [len(place.values({})) for _ in range(16)]
    assert seen[-1] == 2
    place.remove({}, "weight.early")
    assert "early" not in vars(model.weight)


class _Answers:
    """Of a script: it looks every name up in a table."""

    def __getattr__(self, name: str) -> object:
        return {"__wrapped__": len, "__func__": len}[name]


answers = _Answers()


def test_objects_of_the_script_are_asked_for_nothing() -> None:
    """One that fails to answer, or answers any name, is no function."""
    assert "answers" in tensor_attributes.names_in(tensor_attributes.codes_of_script())  # this function's own names
    assert answers is not None


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("import numpy\nimport numpy as np\nnumpy.random.seed(0)", {"random", "seed"}),
        ("array = tensor.numpy()", {"numpy"}),
        ("tensor.data[0] = 1", {"data"}),
        ("tensor.data = other", {"data"}),
        ("from torch import from_numpy as wrapped", {"from_numpy"}),
        ("def f(batch):\n    data, name = batch, 'numpy'\n    return data", set()),
        ("read = getattr(tensor, 'data_ptr')", {"data_ptr"}),
        ("\n".join(f"a.one{i}" for i in range(300)) + "\ntensor.numpy", {"numpy", *(f"one{i}" for i in range(300))}),
    ],
)  # fmt: skip
def test_which_attributes_code_uses(source: str, used: set[str]) -> None:
    code = compile(source, "script", "exec")
    codes = [code, *(part for part in code.co_consts if isinstance(part, type(code)))]
    assert tensor_attributes.used_in(codes) == used
