"""Plain attributes of a model's modules, as of a version."""

from __future__ import annotations

import logging
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ff_core.errors import DifferenceError
from ff_core.state import attribute_values, attributes, codec
from ff_core.state.attributes import Attributes
from ff_core.state.members import Members


class Counting(nn.Module):
    """forward() remembers things, none of them in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.calls = 0
        self.last = deque([0.5], maxlen=2)
        self.by_length: dict[int, int] = {}
        self.noise, self.torchs = random.Random(5), torch.Generator().manual_seed(5)
        self.config = SimpleNamespace(rate=0.5, name="tiny")
        self.hidden: torch.Tensor | None = None
        self.mean = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last.append(float(x.sum()))
        self.by_length[len(x)] = self.by_length.get(len(x), 0) + 1
        self.noise.random(), torch.rand(1, generator=self.torchs)
        self.config.rate *= 0.5
        self.hidden = x.sum(0)
        self.mean += 1
        self.drop.p += 0.1
        if self.calls == 2:
            self.late = 7
        return x


def of(model: nn.Module) -> Attributes:
    made = Attributes(Members(model))
    made.begin()
    return made


def remembered(model: Any) -> list[Any]:
    inner = model[0]
    tensors = [None if t is None else t.tolist() for t in (inner.hidden, inner.mean)]
    plain = inner.calls, list(inner.last), inner.last.maxlen, dict(inner.by_length), inner.config.rate, inner.drop.p
    return [*plain, inner.noise.getstate(), inner.torchs.get_state().tolist(), getattr(inner, "late", None), *tensors]


def encoded(saved: dict[str, Any]) -> dict[str, Any]:
    back: dict[str, Any] = codec.decode(codec.encode(saved))
    return back


def test_nothing_is_saved_of_a_model_that_does_not_change() -> None:
    assert of(nn.Sequential(Counting())).save() == {}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_replacement_gets_all_of_it(steps: int) -> None:
    one, other = nn.Sequential(Counting()), nn.Sequential(Counting())
    mine, its = of(one), of(other)
    for number in range(steps):
        one(torch.full((3, 2), float(number)))
        mine.save()
    held = other[0].last
    its.load(encoded(mine.save()))
    assert remembered(other) == remembered(one)
    assert other[0].last is held  # in place: others may hold it
    assert its.save().keys() == mine.save().keys()


def test_a_survivor_goes_back() -> None:
    model = nn.Sequential(Counting())
    mine = of(model)
    versions = []
    for number in range(4):
        versions.append((encoded(mine.save()), remembered(model)))
        model(torch.full((3, 2), float(number)))
    for saved, before in reversed(versions):
        mine.load(saved)
        assert remembered(model) == before
        model(torch.ones(1, 2))


def test_a_copy_stays_what_it_was() -> None:
    model = nn.Sequential(Counting())
    mine = of(model)
    model(torch.ones(1, 2))
    kept, before = mine.copy(), remembered(model)
    model(torch.ones(4, 2))
    mine.load(kept)
    assert remembered(model) == before


def test_a_list_that_is_written_and_exchanged_is_seen_at_the_next_look() -> None:
    model = nn.Sequential(Counting())
    mine = of(model)
    first = model[0].last
    first.append(3.0)
    model[0].last = deque([7.0], maxlen=2)
    assert mine.save() == {"0.last": ["deque", [7.0], 2]}
    model[0].last.append(8.0)
    first.append(4.0)
    assert mine.save() == {"0.last": ["deque", [7.0, 8.0], 2]}


def test_a_list_that_is_written_in_place_and_stays_as_long_is_seen() -> None:
    model = nn.Sequential(Counting())
    model[0].weights = [1.0, 2.0]
    mine = of(model)
    model[0].weights[1] = 3.0
    assert mine.save() == {"0.weights": ["list", [1.0, 3.0]]}


def test_a_large_tensor_is_a_cache_until_it_changes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "CACHE_BYTES", 4)
    model = nn.Sequential(Counting())
    mine = of(model)
    model(torch.ones(1, 2))
    assert "0.mean" not in mine.save()
    model[0].mean += 1
    assert mine.save()["0.mean"][1] is model[0].mean


def test_what_is_too_large_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(attributes, "MOST_BYTES", 4)
    model = nn.Sequential(Counting())
    mine = of(model)
    for _ in range(3):
        model(torch.ones(1, 2))
        with caplog.at_level(logging.WARNING):
            assert "0.mean" not in mine.save()
    assert len(caplog.records) == 1
    assert "0.mean" in caplog.text and "register_buffer(name, tensor)" in caplog.text


def test_torchs_own_modules_and_what_others_look_after_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1))
    mine = of(model)
    model.eval()
    model[0].in_features = 7
    model[1].momentum, model[2].p = 0.3, 0.2
    assert mine.save() == {"1.momentum": ["plain", 0.3], "2.p": ["plain", 0.2]}


@pytest.mark.parametrize("kind", [OrderedDict, Counter, partial(defaultdict, int)])
def test_containers_that_could_not_be_made_again_are_not_saved(kind: Callable[[], Any]) -> None:
    assert not attribute_values.is_known(kind())


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act: Any = torch.relu


@pytest.mark.parametrize("other", [torch.tanh, nn.functional.gelu, nn.functional.silu, nn.GELU])
def test_a_function_that_a_model_uses_from_now_on(other: Any) -> None:
    dead, mine = Activated(), Activated()
    theirs, own = of(dead), of(mine)
    theirs.begin()
    own.begin()
    dead.act = other
    own.load(codec.decode(codec.encode(theirs.copy())))
    assert mine.act is other
    own.load({})
    assert mine.act is torch.relu


def test_a_function_that_a_replacement_has_not_is_named() -> None:
    mine = of(Activated())
    with pytest.raises(DifferenceError, match=r"as its attribute act, and in this process late\.f is not there"):
        mine.load({"act": ["named", ["late", "f"]]})
