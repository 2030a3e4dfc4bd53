"""What steps use: looked at, compared among ranks, and with the first attempt at a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ff_core.errors import DifferenceError
from ff_core.state.hyperparameters import BYTES, Repeated, Shown, differing, in_common, values_of
from ff_core.state.ranks import by_value, listed


def groups(lr: Any = 0.1) -> list[dict[str, Any]]:
    return [{"params": [torch.zeros(3)], "lr": lr, "betas": (0.9, 0.99), "hook": print}, {"params": [], "lr": 1}]


def test_plain_values_of_each_group() -> None:
    name = "of parameter group"
    assert values_of(groups()) == {f"lr {name} 0": 0.1, f"betas {name} 0": [0.9, 0.99], f"lr {name} 1": 1}
    assert values_of(groups(torch.tensor(0.5)))[f"lr {name} 0"] == 0.5
    assert f"lr {name} 0" not in values_of(groups(torch.zeros(100)))


def test_what_differs_is_named_with_both_values() -> None:
    before = {"lr": 0.1, "eps": 1e-8}
    shown = [Shown(before, before), Shown(before, {"lr": 0.5, "eps": 1e-8}), Shown(before, before)]
    assert differing(shown, {1}) == ["lr is 0.5 on rank 1 (a replacement) and 0.1 on ranks 0, 2"]
    assert differing([shown[0], shown[0]], {1}) == []


def test_ranks_that_differed_before_are_not_blamed() -> None:
    shown = [Shown({"lr": rank, "eps": 1}, {"lr": 2 * rank, "eps": 1}) for rank in range(3)]
    assert differing(shown, {1}) == [] and in_common(shown) == {"eps"}
    # a pipeline stage without that group
    assert differing([*shown, Shown({}, {})], {1}) == [] and in_common([*shown, Shown({}, {})]) == frozenset()


def test_words_for_ranks() -> None:
    assert listed([3], {3}) == "rank 3 (a replacement)"
    assert listed(range(9)) == "ranks 0, 1, 2, 3 and 5 more"
    assert by_value({0: "a", 1: "b"}) == "b on rank 1 and a on rank 0"


@pytest.fixture
def notes() -> memoryview:
    return memoryview(bytearray(BYTES))


def test_a_repeated_step_uses_the_same(notes: memoryview) -> None:
    first = Repeated(2, notes)
    for step in range(1, 20):
        first.uses(step, {"lr": 1 / step})
    replacement = Repeated(2, notes)
    replacement.take_over()
    replacement.uses(18, {"lr": 1 / 18})
    with pytest.raises(DifferenceError, match=r"rank 2 was to repeat step 19 .*now: lr 0\.5, .*register_state"):
        replacement.uses(19, {"lr": 0.5})
    replacement.uses(20, {"lr": 7})


def test_a_survivor_that_counts_twice(notes: memoryview) -> None:
    survivor = Repeated(0, notes)
    survivor.uses(1, {"lr": 1})
    survivor.uses(2, {"lr": 2})
    survivor.again(1)
    with pytest.raises(DifferenceError, match="rank 0 was to repeat step 2"):
        survivor.uses(2, {"lr": 3})
