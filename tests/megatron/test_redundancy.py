"""Who has the same state as a rank, in layouts of four and eight ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.contract.adapter import Held
from ff_megatron import redundancy
from ff_megatron.redundancy import Redundancy


class Group:
    def __init__(self, *ranks: int) -> None:
        self.ranks = list(ranks)

    def size(self) -> int:
        return len(self.ranks)


@pytest.fixture(autouse=True)
def ranks_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redundancy.dist, "get_process_group_ranks", lambda group: group.ranks)


def model(dense: Group, experts: Group, *, mixture: bool = True) -> list[Any]:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    parameters[1].allreduce = not mixture
    return [SimpleNamespace(dp_cp_group=dense, expt_dp_group=experts, parameters=lambda: iter(parameters))]


FOUR = Group(0, 1, 2, 3)


@pytest.mark.parametrize(
    ("dense", "experts", "peers", "held"),
    [
        pytest.param(FOUR, Group(0, 2), [0, 2], Held.REPLICATED, id="ep2"),
        pytest.param(FOUR, FOUR, [0, 1, 2, 3], Held.REPLICATED, id="experts on every rank"),
        pytest.param(FOUR, Group(0), [0, 1, 2, 3], Held.UNIQUE, id="ep4: each expert on one rank"),
        pytest.param(Group(0, 4), Group(0, 2, 4, 6), [0, 4], Held.REPLICATED, id="tp4, experts tp2"),
        pytest.param(Group(0, 2, 4), Group(0, 3), [0, 2, 4], Held.UNIQUE, id="neither in the other"),
    ],
)
def test_experts(dense: Group, experts: Group, peers: list[int], held: Held) -> None:
    found = Redundancy(model(dense, experts))
    assert found.group.ranks == peers
    assert found.held(True, Held.REPLICATED)[0] is held
    assert found.held(False, Held.REPLICATED) == (Held.REPLICATED, f"data-parallel, {len(peers)} ranks")
    assert found.held(False, Held.CONSTANT)[0] is Held.CONSTANT


def test_without_experts_their_group_says_nothing() -> None:
    found = Redundancy(model(FOUR, Group(0), mixture=False))
    assert (found.group, found.size) == (FOUR, 4)


def test_one_rank_has_everything_alone() -> None:
    found = Redundancy(model(Group(3), Group(3)))
    assert found.held(False, Held.REPLICATED) == (Held.UNIQUE, "")
    assert found.held(True, Held.CONSTANT) == (Held.UNIQUE, "")


def test_whose_parameters_an_optimizer_updates() -> None:
    groups = [{"params": []}, {"params": [], "is_expert_parallel": True}]
    assert redundancy.of_experts(SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups)))
    assert not redundancy.of_experts(SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups[:1])))
