"""Data of a loop of the script's own: a replacement goes to where the dead rank was, and proves that it is there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, rng
from ff_megatron.own_data import OwnData, Stream

MADE: list[int] = []  # numbers of micro-batches that were made


def numbers(start: int) -> Iterator[torch.Tensor]:
    for number in range(start, 100):
        MADE.append(number)
        yield torch.tensor([number])


class Ahead:
    """Makes its next item before it gives one away, as hard as the loop wants it by then, and draws as others do."""

    def __init__(self) -> None:
        self.difficulty, self.rng, self.next = 1, random.Random(5), None

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> list[float]:
        given = self.next or self.make()
        self.next = self.make()
        return given

    def make(self) -> list[float]:
        return [self.difficulty, self.rng.random(), float(torch.rand(()))]


def sent(place: Any) -> Any:
    return codec.decode(codec.encode(place))


def train(stream: Stream, data: Any, iterations: int, place: Callable[[Any], None] = lambda place: None) -> list[Any]:
    items = []
    for _ in range(iterations):
        items += [next(stream), next(stream)]
        torch.rand(3)  # dropout
        if isinstance(data, Ahead):
            data.difficulty += 1
            data.rng.random()  # an evaluation
        place(stream.place())
        stream.forget(stream.position - 2)
    return items


def test_a_replacement_goes_on_with_the_items_that_the_dead_rank_would_have_had() -> None:
    torch.manual_seed(1)
    data, other, places = Ahead(), Ahead(), list[Any]()
    dead = Stream(data)
    train(dead, data, 4, lambda place: places.append((sent(place), rng.capture())))
    wanted = train(dead, data, 2)
    torch.manual_seed(9)
    place, states = places[-1]
    mine = Stream(other)
    mine.go(place)
    mine.go(place)  # before it joins, and when it does
    rng.restore(states)
    assert train(mine, other, 2) == wanted


def test_a_function_begins_behind_what_need_not_be_loaded() -> None:
    dead = Stream(numbers)
    for _ in range(7):
        next(dead)
    MADE.clear()
    mine = Stream(numbers)
    mine.go(sent(dead.place()))
    assert MADE == [5, 6] and int(next(mine)) == 7  # two prove that the data are the same


def test_a_function_that_makes_other_data_is_refused() -> None:
    dead = Stream(numbers)
    for _ in range(4):
        next(dead)
    with pytest.raises(FailoverError, match="batch 4 of the replacement is not the one"):
        Stream(lambda start: numbers(start + 1)).go(sent(dead.place()))


def test_a_survivor_goes_back_and_its_place_is_that_of_the_version() -> None:
    stream = Stream(iter(numbers(0)))
    for _ in range(4):
        next(stream)
    place = sent(stream.place())
    stream.forget(4)
    items = [next(stream) for _ in range(3)]
    stream.go(place)
    assert sent(stream.place())["consumed"] == 4
    assert [next(stream) for _ in range(3)] == items


def test_one_iterator_for_two_is_refused() -> None:
    data = iter([1])
    with pytest.raises(UnsupportedError, match="the same iterator twice"):
        OwnData([data, data], iter)
