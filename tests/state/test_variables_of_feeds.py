"""A generator that fetches a batch ahead has the batch in a variable: it goes on by itself, in every replacement, too.

A replacement begins where a batch is asked for, so the generator runs then. In the other ranks training began in the
first engine(...), when it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ff_core.state import codec
from ff_core.state.variables import Variables


def one_ahead(ask: Callable[[], int]) -> Iterator[float]:
    held = None
    while True:
        item = float(ask())
        if held is not None:
            yield held
        held = item


def train(ask: Callable[[], int], forward: Callable[[], None]) -> list[float]:
    """Three steps. Gives the batches that were trained on, by the ranks before, too."""
    batches, seen = one_ahead(ask), list[float]()
    for _ in range(3):
        batch = next(batches)
        forward()
        seen.append(batch)
    return seen


def a_rank(first: int, versions: dict[int, dict[str, Any]]) -> list[float]:
    """Its first batch is `first`; it takes the place of a rank that died after that version, if `first` is not 0."""
    variables, numbers = Variables(), (number for number in range(first, 100))

    def ask() -> int:
        number = next(numbers)
        if number == first > 0:  # a replacement joins where it asks for its first batch
            variables.begin(versions[first]["functions"])
            variables.load(versions[first], repeats=False)
        elif number == first + 2:  # where the one behind the next is asked for, a version is complete
            versions[first + 1] = codec.decode(codec.encode(variables.save(), "variables"))
        return number

    def forward() -> None:
        if first == 0 and not versions:
            versions[0] = {}
            variables.begin()

    return train(ask, forward)


def test_a_replacement_of_a_replacement_has_no_batch_twice() -> None:
    versions: dict[int, dict[str, Any]] = {}
    assert a_rank(0, versions) == [0.0, 1.0, 2.0]
    assert a_rank(1, versions) == [0.0, 1.0, 2.0, 3.0]
    assert a_rank(2, versions) == [0.0, 1.0, 2.0, 3.0, 4.0]
