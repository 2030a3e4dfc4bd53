"""Module buffers: those that forward changes are found and come back, the others are what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ff_core.errors import FailoverError
from ff_core.state import codec
from ff_core.state.buffers import Buffers
from ff_core.state.members import Members


class Model(torch.nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("table", torch.randn(5, generator=generator))
        self.register_buffer("counter", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(0))

    def forward(self, grow: int = 0) -> None:
        self.norm(torch.randn(4, 3))
        self.counter += 1
        if grow:
            self.cache = torch.arange(float(grow))


def values(model: torch.nn.Module) -> dict[str, list[float]]:
    return {name: buffer.reshape(-1).tolist() for name, buffer in model.named_buffers()}


def begun(model: Model) -> Buffers:
    buffers = Buffers(Members(model))
    buffers.begin()
    return buffers


def saved(buffers: Buffers) -> dict[str, Any]:
    buffers._members.version_ends()
    return codec.decode(codec.encode(buffers.save()))


def test_only_what_changes_is_saved() -> None:
    model = Model()
    buffers = begun(model)
    assert set(saved(buffers)["changing"]) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    model()
    assert set(saved(buffers)["changing"]) >= {"counter"}
    assert set(saved(buffers)["constant"]) == {"table", "cache"}
    model(grow=4)
    assert set(saved(buffers)["constant"]) == {"table"}


def test_survivor_goes_back_also_over_a_first_change() -> None:
    model = Model()
    buffers = begun(model)
    start, at_start = saved(buffers), values(model)
    model(grow=3)
    later, at_later = saved(buffers), values(model)
    model(grow=6)
    model.register_buffer("late", torch.ones(2))
    buffers.save()
    buffers.load(later, {})
    assert values(model) == at_later
    buffers.load(start, {})
    assert values(model) == at_start


def test_newcomer_keeps_its_own_or_takes_its_peers() -> None:
    model = Model(seed=1)
    buffers = begun(model)
    model(grow=2)
    state = saved(buffers)
    for seed, peers in ((1, {"table": torch.zeros(5)}), (2, {"table": model.table})):
        newcomer = Model(seed)
        begun(newcomer).load(state, peers)
        assert values(newcomer) == values(model)


def test_newcomer_that_differs_from_everybody_is_an_error() -> None:
    model = Model(seed=1)
    state = saved(begun(model))
    newcomer = Model(seed=2)
    with pytest.raises(FailoverError, match=r"'table'.*no peer has it"):
        begun(newcomer).load(state, {"table": torch.zeros(5)})
