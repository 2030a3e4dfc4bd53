"""Writes outside of the step are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ff_core.state.edits import Edits


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)).to(torch.bfloat16)


@torch.no_grad()
def clamp(net: Any) -> None:
    net[0].weight.clamp_(-0.01, 0.01)


def clamp_data(net: Any) -> None:
    net[0].weight.data.clamp_(-0.01, 0.01)


@torch.no_grad()
def swap(net: Any) -> None:
    """There and back again: the contents are what they were, but the copy may have seen the others."""
    kept = net[0].weight.clone()
    net[0].weight.zero_()
    net[0].weight.copy_(kept)


@pytest.mark.parametrize("edit", [clamp, clamp_data, swap])
def test_named(edit: Callable[[Any], None]) -> None:
    net = model()
    edits = Edits(net.named_parameters)
    edits.stepped(1)
    assert edits.found() == []
    edit(net)
    assert edits.found() == ["0.weight"]
    edits.forget()
    assert edits.found() == []


def test_other_memory_is_named() -> None:
    net: Any = model()
    edits = Edits(net.named_parameters)
    edits.stepped(1)
    clamp_data(net)
    assert edits.moved() == []
    net[0].weight.data = net[0].weight.data.clamp(-0.01, 0.01)
    edits.stepped(2)  # as where a version is copied when its iteration is over
    assert edits.moved() == ["0.weight"]
    edits.forget()
    edits.stepped(3)
    assert edits.moved() == []


def test_training_is_no_edit() -> None:
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    edits = Edits(net.named_parameters)
    for version in range(1, 40):
        net(torch.ones(2, 3, dtype=torch.bfloat16)).sum().backward()
        assert edits.found() == []
        optimizer.step()
        edits.stepped(version)
        optimizer.zero_grad()
        net.eval()
        net(torch.ones(1, 3, dtype=torch.bfloat16))
        net.train()


def test_contents_are_looked_at_now_and_then() -> None:
    net = model()
    edits = Edits(net.named_parameters)
    seen = []
    for version in range(1, 65):
        edits.stepped(version)
        net[0].bias.data.add_(1)  # type: ignore[index,union-attr,operator]
        if edits.found():
            seen.append(version)
    assert seen == [*range(1, 17), 32, 48, 64]


def test_another_list() -> None:
    net = model()
    edits = Edits(net.named_parameters)
    edits.stepped(1)
    net.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))
    assert edits.found() == ["the list of parameters itself"]


def test_a_step_that_is_interrupted_is_no_edit() -> None:
    net = model()
    edits = Edits(net.named_parameters)
    edits.stepped(1)
    assert edits.found() == []
    edits.stepping()
    clamp(net)  # half of the step, then a failure
    assert edits.found() == []


def test_an_edit_before_a_step_is_found_before_it_begins() -> None:
    net = model()
    edits = Edits(net.named_parameters)
    edits.stepped(1)
    clamp(net)
    assert edits.found() == ["0.weight"]
    edits.stepping()
    assert edits.found() == []
