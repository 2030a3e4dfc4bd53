"""Groups of micro-batches: handed out again, and found again by another process."""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ff_core.errors import FailoverError
from ff_core.state import codec, rng
from ff_deepspeed.feed import Feed, Tracked
from ff_deepspeed.loader import ReplayableLoader


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), float(torch.rand(()))])


def make_loader(**kwargs: Any) -> DataLoader[torch.Tensor]:
    return DataLoader(Noisy(), batch_size=2, shuffle="sampler" not in kwargs, **kwargs)


def values(group: list[Any] | None) -> list[Any]:
    assert group is not None
    return [batch.tolist() for batch in group]


def body() -> float:
    """What a loop's body does to the generators."""
    return float(torch.rand(())) + random.random()


def test_kept_groups_come_again_with_the_generators_that_followed_them() -> None:
    loader = ReplayableLoader(make_loader(), 2)
    first = [(values(loader.fetch(version)), body()) for version in (1, 2)]
    assert [(values(loader.fetch(version)), body()) for version in (1, 2)] == first
    assert [(values(loader.fetch(version)), body()) for version in (2,)] == first[1:]
    third = values(loader.fetch(3))
    assert loader.fetch(4) is None
    assert loader.fetch(4) is None
    assert values(loader.fetch(3)) == third


def test_a_kept_group_is_not_written_into_by_what_is_put_back() -> None:
    """A script's list of earlier batches is put back in place."""
    loader = ReplayableLoader(make_loader(), 1)
    bank = [group for version in (1, 2, 3) for group in loader.fetch(version) or ()]
    wanted = values(bank[1:])
    loader.keep_apart()
    for older, newer in ((0, 1), (1, 2)):
        bank[newer].copy_(bank[older].clone())
    assert [values(loader.fetch(version))[0] for version in (2, 3)] == wanted


@pytest.mark.parametrize("kind", ["global", "own generator", "sampler with generator", "processes"])
def test_another_process_goes_to_the_same_place(kind: str) -> None:
    def make() -> DataLoader[torch.Tensor]:
        if kind == "own generator":
            return make_loader(generator=torch.Generator().manual_seed(7))
        if kind == "sampler with generator":
            return make_loader(sampler=RandomSampler(Noisy(), generator=torch.Generator().manual_seed(8)))
        return make_loader(num_workers=2 if kind == "processes" else 0)

    torch.manual_seed(1)
    data = make()
    list(data)  # an epoch before: generators have moved on
    loader = ReplayableLoader(data, 1)
    for version in (1, 2, 3):
        loader.fetch(version)
        body()
    position, states = loader.position(3), rng.capture()
    expected = [values(loader.fetch(version)) for version in (4, 5, 6)]

    torch.manual_seed(99)
    other = ReplayableLoader(make(), 1)
    other.seek(position)
    rng.restore(states)
    assert [values(other.fetch(version)) for version in (4, 5, 6)] == expected
    assert other.fetch(7) is None


class OwnGenerator(Noisy):
    """Augments with a generator of its own, which outlives an epoch."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(5)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, self.own.random()])


def make_persistent() -> DataLoader[torch.Tensor]:
    return make_loader(num_workers=2, persistent_workers=True)


def make_with_own_generator() -> DataLoader[torch.Tensor]:
    return DataLoader(OwnGenerator(), batch_size=2)


@pytest.mark.parametrize("consumed", [0, 2])
@pytest.mark.parametrize("make", [make_persistent, make_with_own_generator])
def test_another_process_goes_into_the_second_epoch(
    make: Callable[[], DataLoader[torch.Tensor]], consumed: int
) -> None:
    torch.manual_seed(1)
    data = make()
    first = ReplayableLoader(data, 1)
    while first.fetch(0) is not None:
        first.settle(0, 0)
    second = ReplayableLoader(data, 1)
    second.begin()
    for version in range(1, consumed + 1):
        second.fetch(version)
        body()
    position, states = codec.decode(codec.encode(second.position(consumed))), rng.capture()
    expected = [values(second.fetch(version)) for version in (3, 4)]

    torch.manual_seed(99)
    other = ReplayableLoader(make(), 1)
    other.seek(position)
    rng.restore(states)
    assert [values(other.fetch(version)) for version in (3, 4)] == expected


def ahead() -> Iterator[torch.Tensor]:
    """Makes each batch before it gives the one before away."""
    following = torch.rand(3)
    while True:
        batch, following = following, torch.rand(3)
        yield batch


def test_generator_that_works_ahead_is_found_again() -> None:
    torch.manual_seed(1)
    loader = ReplayableLoader(ahead(), 1)
    for version in (1, 2, 3):
        loader.fetch(version)
        body()
    position, states = loader.position(3), rng.capture()
    expected = values(loader.fetch(4))

    torch.manual_seed(99)
    other = ReplayableLoader(ahead(), 1)
    other.seek(position)
    rng.restore(states)
    assert values(other.fetch(4)) == expected


def test_other_data_are_noticed() -> None:
    loader = ReplayableLoader([torch.ones(2), torch.zeros(2)], 1)
    loader.fetch(1)
    with pytest.raises(FailoverError, match=r"batch 1 of the replacement is not the one"):
        ReplayableLoader([torch.zeros(2), torch.zeros(2)], 1).seek(loader.position(1))


def test_position_of_an_earlier_version_and_back_again() -> None:
    loader = ReplayableLoader(make_loader(), 1)
    for version in (1, 2, 3, 4):
        loader.fetch(version)
    assert [loader.position(version)["consumed"] for version in (1, 2, 4)] == [1, 2, 4]
    other = ReplayableLoader(make_loader(), 1)
    other.seek(loader.position(4))
    other.seek(loader.position(2))  # a second failure went further back
    assert other.position(2)["consumed"] == 2
    assert values(other.fetch(3))[0][0][0] == values(loader.fetch(3))[0][0][0]


def test_data_that_became_shorter_is_an_error() -> None:
    loader = ReplayableLoader([1, 2, 3], 1)
    for version in (1, 2, 3):
        loader.fetch(version)
    with pytest.raises(FailoverError, match=r"ended after 2 batches.*had consumed\s*3"):
        ReplayableLoader([1, 2], 1).seek(loader.position(3))


def test_incomplete_group_is_dropped_and_limit_ends_early(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ff_deepspeed")
    loader = ReplayableLoader(range(5), 2)
    assert [loader.fetch(version) for version in (1, 2, 3)] == [[0, 1], [2, 3], None]
    assert "the last 1 micro-batches are dropped" in caplog.text
    limited = ReplayableLoader(range(6), 2, limit=2)
    assert [limited.fetch(version) for version in (1, 2, 3)] == [[0, 1], [2, 3], None]


def test_body_that_writes_into_its_batch_is_noticed() -> None:
    data = [{"x": torch.ones(2)} for _ in range(4)]
    loader = ReplayableLoader(data, 1)
    group = loader.fetch(1)
    assert group is not None
    group[0].pop("x").add_(1)
    with pytest.raises(FailoverError, match=r"iteration 1 is needed again.*wrote into its tensors"):
        loader.fetch(1)
    loader.settle(1, -1)  # noticed: from now on copies are handed out
    second = loader.fetch(2)
    assert second is not None
    second[0].pop("x").add_(1)
    again = loader.fetch(2)
    assert again is not None
    assert again[0]["x"].tolist() == [1, 1]


def test_taking_a_batch_apart_does_not_harm_it() -> None:
    loader = ReplayableLoader([{"x": torch.ones(1), "more": [torch.zeros(1)]}], 1)
    group = loader.fetch(1)
    assert group is not None
    del group[0]["x"]
    group[0]["more"].clear()
    group.clear()
    again = loader.fetch(1)
    assert again is not None
    assert again[0]["x"].item() == 1
    assert len(again[0]["more"]) == 1


def test_what_nobody_needs_is_forgotten() -> None:
    loader = ReplayableLoader(range(6), 1)
    for version in (1, 2, 3, 4):
        loader.fetch(version)
        loader.settle(version, version - 2)
    assert loader.can_return_to(2)
    assert not loader.can_return_to(1)
    assert loader.can_return_to(4)


def ignore_the_end(worker: int) -> None:
    """As a script does that wants to save when it is told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@pytest.mark.parametrize("loop", ["exact", "usual"])
def test_processes_of_a_loader_end_with_the_loop(loop: str) -> None:
    """Python's exit would wait for one that ignores SIGTERM, until the job is killed."""
    others = set(multiprocessing.active_children())
    data: Any = torch.utils.data.DataLoader([1, 2, 3], num_workers=1, worker_init_fn=ignore_the_end)
    if loop == "exact":
        kept = ReplayableLoader(data, 1)
        assert kept.fetch(1) is not None
        release: Any = kept.release
    else:
        feed = Feed()
        tracked = Tracked(0, data, lambda: iter(data), feed.next, feed.is_training)
        next(tracked)
        release = feed.close
    (process,) = set(multiprocessing.active_children()) - others
    release()
    process.join(60)
    assert not process.is_alive()


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("order", ["other last", "in turns"])
def test_the_training_loader_is_the_one_that_the_first_inputs_come_from(copied: bool, order: str) -> None:
    """Not the one that was asked last: a script may look at a batch of another one before."""
    feed = Feed()

    def loader(number: int) -> Tracked:
        batches = [torch.full((4,), 10.0 * number + n) for n in range(3)]
        return Tracked(number, batches, lambda: iter(batches), feed.next, feed.is_training)

    main, other = loader(1), loader(2)
    first = next(main)
    next(other)
    if order == "in turns":
        second = next(main)
        next(other)
        assert second[0] == 11
    inputs = first.clone() if copied else first
    feed.begin_training(0, inputs)
    assert feed.is_training(main)
    assert not feed.is_training(other)
    feed.used(inputs)
    assert feed.position()["loader"] == 1
    assert feed.position()["consumed"] == 1
