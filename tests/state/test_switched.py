"""Modes of models that no engine has: put back in a survivor, compared in a replacement."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ff_core.errors import DifferenceError
from ff_core.state import codec, switched


@pytest.fixture(autouse=True)
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.nn.Module, "train", torch.nn.Module.train)
    monkeypatch.setattr(switched, "_noticing", False)
    another_process(monkeypatch, "first")
    monkeypatch.setattr(switched, "_protected", [])
    switched.watch()
    yield


def another_process(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(switched, "_process", name)
    monkeypatch.setattr(switched, "_switched", {})


def teacher() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())


def saved() -> Any:
    return codec.decode(codec.encode(switched.collect()))


def test_a_survivor_gets_the_modes_of_the_version() -> None:
    model, other = teacher(), teacher()
    switched.begin()
    model.eval()
    version = saved()
    model.train()
    other.eval()  # younger than the version
    switched.load(version)
    assert not any(part.training for part in model.modules())
    assert all(part.training for part in other.modules())


def test_one_part_is_switched() -> None:
    model = teacher()
    switched.begin()
    model[1].eval()  # type: ignore[index,operator]
    version = saved()
    model.train()
    switched.load(version)
    assert [part.training for part in model.modules()] == [True, True, False]


def test_a_replacement_is_refused_by_name_if_its_models_are_in_other_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = teacher()
    switched.begin()
    model.eval()
    switched_by_then, _ = saved(), model.train()
    back_again = saved()
    another_process(monkeypatch, "second")
    switched.load(back_again)
    with pytest.raises(DifferenceError, match=r"a Sequential \(.*test_switched\.py:\d+\).*eval\(\) before the loop"):
        switched.load(switched_by_then)


def test_what_is_switched_before_training_is_the_scripts_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model = teacher().eval()
    switched.begin()
    model.eval()
    version = saved()
    another_process(monkeypatch, "second")
    switched.load(version)


def test_what_an_adapter_saves_is_left_out() -> None:
    model = teacher()
    switched.leave_out(model)
    switched.begin()
    model.eval()
    model[1].train()  # type: ignore[index,operator]
    assert saved()["models"] == {}


def test_models_that_are_gone_are_forgotten() -> None:
    switched.begin()
    for _ in range(3):
        teacher().eval()
    gc.collect()
    assert saved()["models"] == {}


def test_a_script_that_goes_on_where_it_is_keeps_its_modes() -> None:
    model = teacher()
    switched.begin()
    version = saved()
    model.eval()
    with switched.kept():
        switched.load(version)
        assert model.training
    assert not model.training
