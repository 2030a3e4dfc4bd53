"""What a data set has from earlier epochs is found, and put back in another process."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ff_core.errors import FailoverError
from ff_core.state import codec, data_state
from ff_deepspeed.loader import ReplayableLoader


class Counting(Dataset[torch.Tensor]):
    """Each item has a number that goes on over epochs."""

    def __init__(self) -> None:
        self.served = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        self.served += 1
        return torch.tensor([index, self.served])


class InADict(Counting):
    def __init__(self) -> None:
        self.counts = {"served": 0.0}

    def __getitem__(self, index: int) -> torch.Tensor:
        self.counts["served"] += 0.5
        return torch.tensor([index, self.counts["served"]])


class Shuffled(Counting):
    """Shuffles what the epoch before has left, in place."""

    def __init__(self) -> None:
        self.order: Any = list(range(4))
        self.rest = np.arange(4)
        self.third = torch.arange(4)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 0:
            self.order.reverse()
            self.rest[:] = np.roll(self.rest, 1)
            self.third.copy_(self.third.roll(3))
        return torch.tensor([self.order[index], self.rest[index], self.third[index]])


class Opening(Counting):
    """Remembers what it has opened in this process: not to be put back."""

    def __init__(self) -> None:
        self.is_open, self.file, self.number = False, None, None

    def __getitem__(self, index: int) -> torch.Tensor:
        if not self.is_open:
            self.file, self.is_open, self.number = [index], True, 7
        return torch.tensor([index, len(self.file)])


def collate_with(own: np.random.RandomState) -> Callable[[Any], torch.Tensor]:
    return lambda items: torch.tensor(items) + own.random()


def add(own: random.Random, items: list[int]) -> torch.Tensor:
    return torch.tensor(items) + own.random()


NOISE = np.random.RandomState(3)


class OfTheModule(Counting):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, NOISE.random()])


class OfTheClass(Counting):
    noise = np.random.default_rng(4)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, self.noise.random()])


def of_the_module() -> DataLoader[Any]:
    NOISE.seed(3)
    return DataLoader(OfTheModule(), batch_size=2)


def of_the_class() -> DataLoader[Any]:
    OfTheClass.noise.bit_generator.state = np.random.default_rng(4).bit_generator.state
    return DataLoader(OfTheClass(), batch_size=2)


LOADERS: dict[str, Callable[[], Any]] = {
    "counter": lambda: DataLoader(Counting(), batch_size=2),
    "counter in a dict": lambda: DataLoader(InADict(), batch_size=2),
    "order shuffled in place": lambda: DataLoader(Shuffled(), batch_size=2),
    "opened lazily": lambda: DataLoader(Opening(), batch_size=2),
    "closure": lambda: DataLoader(range(4), 2, collate_fn=collate_with(np.random.RandomState(1))),
    "partial": lambda: DataLoader(range(4), 2, collate_fn=functools.partial(add, random.Random(2))),
    "global name": of_the_module,
    "class attribute": of_the_class,
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_replacement_in_the_third_epoch(kind: str, begun: bool) -> None:
    loader = LOADERS[kind]()
    for _ in range(2):
        epoch = ReplayableLoader(loader, 1)
        while epoch.fetch(0) is not None:
            epoch.settle(0, 0)
    third = ReplayableLoader(loader, 1)
    if begun:
        third.begin()
    position = codec.decode(codec.encode(third.position(0)))
    expected = [third.fetch(version) for version in (1, 2)]

    other = ReplayableLoader(LOADERS[kind](), 1)
    other.seek(position)
    again = [other.fetch(version) for version in (1, 2)]
    for ours, theirs in zip(again, expected, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours[0], theirs[0])


class Large(Counting):
    def __init__(self, shuffled: bool) -> None:
        self.order = np.arange(50_000)
        self.shuffled = shuffled

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.shuffled:
            self.order[:] = self.order[::-1].copy()
        return torch.tensor(self.order[index])


def test_too_many_numbers_are_refused_by_name() -> None:
    loader = DataLoader(Large(True))
    data_state.begun(loader)
    next(iter(loader))
    saved = data_state.begun(loader)
    assert saved["changed"] == {} and list(saved["many"]) == ["dataset.order"]
    with pytest.raises(FailoverError, match=r"^dataset\.order of the data loader changes from epoch to epoch"):
        data_state.put(DataLoader(Large(True)), saved)
    data_state.put(DataLoader(Large(False)), {**saved, "many": {}})


def test_what_does_not_change_costs_nothing() -> None:
    loader = DataLoader(Large(False))
    data_state.begun(loader)
    list(loader)
    assert data_state.begun(loader) == {"generators": [], "changed": {}, "many": {}}


def test_a_generator_that_is_made_late_is_refused() -> None:
    loader = DataLoader(Counting())
    loader.dataset.noise = random.Random(1)  # type: ignore[attr-defined]
    with pytest.raises(FailoverError, match="0 random generators where the dead rank's had 1"):
        data_state.put(DataLoader(Counting()), data_state.begun(loader))


def test_a_number_that_is_made_late_is_refused() -> None:
    saved = {"generators": [], "changed": {"dataset.served": 4, "dataset.other": 3}, "many": {}}
    with pytest.raises(FailoverError, match=r"no number dataset\.other"):
        data_state.put(DataLoader(Counting()), saved)
