"""What steps use: looked at, compared among ranks, and with the first attempt at a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ff_core.errors import DifferenceError
from ff_core.state.hyperparameters import BYTES, Noted, Repeated, Shown, checksum, differing, in_common, values_of
from ff_core.state.ranks import by_value, listed
from tests.remedies import SHOWN


def groups(lr: Any = 0.1) -> list[dict[str, Any]]:
    return [{"params": [torch.zeros(3)], "lr": lr, "betas": (0.9, 0.99), "hook": print}, {"params": [], "lr": 1}]


def test_plain_values_of_each_group() -> None:
    name = "of parameter group"
    assert values_of(groups()) == {f"lr {name} 0": 0.1, f"betas {name} 0": [0.9, 0.99], f"lr {name} 1": 1}
    assert values_of(groups(torch.tensor(0.5)))[f"lr {name} 0"] == 0.5
    assert f"lr {name} 0" not in values_of(groups(torch.zeros(100)))


def test_noted_values_are_those_of_now() -> None:
    """Whatever is exchanged or written in place between two steps."""
    noted, weights = Noted(), [0.9, 0.99]
    asked = groups()
    asked[0] |= {"weights": weights, "scale": torch.tensor(0.5), "count": 1, "pair": (1, [2])}

    def check() -> None:
        values, used = noted.of(asked)
        assert repr(values) == repr(values_of(asked)) and used == checksum(values)

    check()
    changes: list[Any] = [
        lambda: None,
        lambda: asked[0].update(lr=0.2),
        lambda: asked[0].update(lr=-0.0),
        lambda: asked[0].update(lr=0.0),  # equal to the one before, and not the same
        lambda: asked[0].update(count=True),
        lambda: asked[0].update(count=1.0),
        lambda: weights.append(1),
        lambda: asked[0]["scale"].fill_(2),
        lambda: asked[0]["pair"][1].append(3),
        lambda: asked[0].update(betas=(0.9, float("nan"))),
        lambda: asked[0].pop("betas"),
        lambda: asked[0].update(betas="none"),
        lambda: asked.pop(),
        lambda: asked.insert(0, {"lr": 5}),
    ]
    for change in changes:
        change()
        check()


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


def uses(rank: Repeated, step: int, values: dict[str, Any]) -> None:
    rank.uses(step, values, checksum(values))


def test_a_repeated_step_uses_the_same(notes: memoryview) -> None:
    first = Repeated(2, notes, SHOWN)
    for step in range(1, 20):
        uses(first, step, {"lr": 1 / step})
    replacement = Repeated(2, notes, SHOWN)
    replacement.take_over()
    uses(replacement, 18, {"lr": 1 / 18})
    with pytest.raises(DifferenceError, match=r"2 was to repeat step 19 .*now: lr 0\.5, .* from <counter>, .*: <save>"):
        uses(replacement, 19, {"lr": 0.5})
    uses(replacement, 20, {"lr": 7})


def test_a_survivor_that_counts_twice(notes: memoryview) -> None:
    survivor = Repeated(0, notes, SHOWN)
    uses(survivor, 1, {"lr": 1})
    uses(survivor, 2, {"lr": 2})
    survivor.again(1)
    with pytest.raises(DifferenceError, match="rank 0 was to repeat step 2"):
        uses(survivor, 2, {"lr": 3})
