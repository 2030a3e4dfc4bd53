"""Kept lists of a model's members say what torch says, whatever the script does to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ff_core.state.members import Members


def model() -> Any:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 1)))
    net.register_buffer("table", torch.zeros(3))
    return net


def same(members: Members, net: nn.Module) -> bool:
    """As objects: equal tensors are not enough."""
    kept = [*members.modules, *(p for _, p in members.parameters), *members.buffers.values()]
    live = [*net.modules(), *net.parameters(), *net.buffers()]
    names = [name for name, _ in members.parameters], list(members.buffers)
    wanted = [name for name, _ in net.named_parameters()], [name for name, _ in net.named_buffers()]
    return names == wanted and list(map(id, kept)) == list(map(id, live))


def replace_parameter(net: Any) -> None:
    net[0].weight = nn.Parameter(torch.zeros(2, 2))


def add_module(net: Any) -> None:
    net[2].add_module("more", nn.Linear(1, 1))


def replace_module(net: Any) -> None:
    net[2] = nn.Linear(2, 1)


def replace_buffer(net: Any) -> None:
    net.table = torch.ones(3)


def delete_parameter(net: Any) -> None:
    del net[0].bias


def delete_module(net: Any) -> None:
    del net[2]


def delete_behind_torch(net: Any) -> None:
    net[0]._parameters.pop("bias")


def add_behind_torch(net: Any) -> None:
    net._buffers["more"] = torch.zeros(1)


def parametrize(net: Any) -> None:
    nn.utils.parametrizations.weight_norm(net[0])


AT_ONCE = [
    replace_parameter, add_module, replace_module, replace_buffer, delete_parameter, delete_module,
    delete_behind_torch, add_behind_torch, parametrize,
]  # fmt: skip


def set_to_none(net: Any) -> None:
    net[0].bias = None  # torch calls no hook


def exchange_behind_torch(net: Any) -> None:
    net[0]._parameters["weight"] = nn.Parameter(torch.zeros(2, 2))


OTHER = nn.Linear(2, 2)  # made before: making one calls torch's hooks


def exchange_module(net: Any) -> None:
    net._modules["0"] = OTHER


def another_dictionary(net: Any) -> None:
    net[1].__dict__["_buffers"] = {name: value.clone() for name, value in net[1]._buffers.items()}


@pytest.mark.parametrize("change", AT_ONCE)
def test_a_change_is_seen_at_the_next_look(change: Callable[[Any], None]) -> None:
    net = model()
    members = Members(net)
    kept = members.look().modules
    assert same(members, net) and members.look().modules is kept  # not listed again
    change(net)
    assert not same(members, net)
    assert same(members.look(), net)


@pytest.mark.parametrize("change", [set_to_none, exchange_behind_torch])
def test_an_exchanged_parameter_is_seen_when_the_version_ends(change: Callable[[Any], None]) -> None:
    net = model()
    members = Members(net)
    change(net)
    assert not same(members.look(), net)
    assert same(members.version_ends(), net)


@pytest.mark.parametrize("change", [exchange_module, another_dictionary])
def test_an_exchange_behind_torch_is_seen_by_the_16th_version(change: Callable[[Any], None]) -> None:
    net = model()
    members = Members(net)
    members.version_ends()
    change(net)
    stale = [version for version in range(2, 17) if not same(members.version_ends(), net)]
    assert stale == list(range(2, 16))


def test_a_model_made_elsewhere_changes_nothing() -> None:
    net = model()
    members = Members(net)
    model()
    assert same(members.look(), net)
