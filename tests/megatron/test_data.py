"""Data iterators that go back: kept micro-batches are handed out again, forgotten ones are refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.errors import FailoverError
from ff_core.state import codec, rng
from ff_core.state.loading import Loaded
from ff_megatron.data import Data, Rewindable


class Rerun:
    """As megatron's RerunDataIterator: an `iterable`, and the micro-batches of the running step."""

    def __init__(self, iterable: Any) -> None:
        self.iterable, self.saved_microbatches, self.replaying, self.replay_pos = iterable, [1], True, 1


def take(source: Any, count: int) -> list[int]:
    return [next(source) for _ in range(count)]


def test_items_come_again_and_then_go_on() -> None:
    source = Rewindable(iter(range(10)))
    assert take(source, 5) == [0, 1, 2, 3, 4]
    source.seek(2)
    assert take(source, 5) == [2, 3, 4, 5, 6]


def test_forgotten_items_are_refused() -> None:
    source = Rewindable(iter(range(10)))
    take(source, 5)
    source.forget(3)
    source.seek(3)
    assert take(source, 1) == [3]
    with pytest.raises(FailoverError, match="micro-batch 2 is needed again, but the data of this process begins at 3"):
        source.seek(2)


def test_what_is_still_to_come_is_not_forgotten() -> None:
    source = Rewindable(iter(range(10)))
    take(source, 2)
    source.forget(9)
    assert take(source, 2) == [2, 3]


def test_the_end_is_the_end_again() -> None:
    source = Rewindable(iter(range(2)))
    assert list(source) == [0, 1]
    source.seek(1)
    assert list(source) == [1]


def test_what_get_batch_writes_into_a_micro_batch_is_not_handed_out_again() -> None:
    """core_v0.18 and newer move tensors to the device there, and cut sequences for context parallelism."""
    source = Rewindable(iter([{"tokens": [1, 2, 3, 4]}]))
    batch = next(source)
    batch["tokens"] = batch["tokens"][:2]
    batch["labels"] = None
    source.seek(0)
    assert next(source) == {"tokens": [1, 2, 3, 4]}


def test_a_newcomer_counts_on_and_goes_forward() -> None:
    data = Data()
    train = Rerun(iter(range(100, 200)))
    data.track((train, None, [Rerun(iter("ab"))]), [40, 7])
    assert data.positions() == [40, 7]
    data.seek([42, 7])
    assert next(train.iterable) == 102
    assert (train.saved_microbatches, train.replaying, train.replay_pos) == ([], False, 0)


class Drawing:
    """A data set that counts, draws, keeps what it has loaded, and makes an attribute when it is first used."""

    def __init__(self) -> None:
        self.generator, self.cache = random.Random(3), dict[int, float]()

    def __iter__(self) -> Iterator[tuple[float, ...]]:
        for number in range(100):
            self.count = getattr(self, "count", 0) + 1
            self.cache.setdefault(number % 3, random.random())
            yield self.count, self.generator.random(), float(torch.rand(())), self.cache[number % 3]


def all_random(data: Drawing) -> tuple[Any, ...]:
    return data.count, data.generator.random(), random.random(), float(torch.rand(()))


def test_what_loading_did_is_done_again_with_an_item_that_is_handed_out_again() -> None:
    """Though it is not loaded again: others may draw from the same generators."""
    data = Drawing()
    source = Rewindable(iter(data), loader=data)
    next(source)
    before, states = rng.capture(), data.generator.getstate()
    items = take(source, 3)
    wanted = all_random(data)
    source.seek(1)
    rng.restore(before)  # as of the version
    data.generator.setstate(states)
    data.count = 1
    assert take(source, 3) == items
    assert all_random(data) == wanted


def test_a_newcomer_gets_what_the_loaders_objects_had() -> None:
    data, other = Drawing(), Drawing()
    source = Rewindable(iter(data), loader=data)
    take(source, 3)
    Rewindable(iter(other), loader=other).put(codec.decode(codec.encode(source.now())))
    assert other.count == 3 and other.generator.random() == data.generator.random()


def test_a_kept_item_is_not_written_into_by_what_is_put_back() -> None:
    """A script's list of pending micro-batches is put back, perhaps in place."""
    source = Rewindable(iter([{"tokens": torch.tensor([number])} for number in range(5)]))
    pending = [next(source) for _ in range(3)]
    source.seek(1)
    pending[1]["tokens"][0] = 7
    assert [int(next(source)["tokens"]) for _ in range(3)] == [1, 2, 3]


def test_a_kept_item_that_the_script_has_written_into_is_named() -> None:
    source = Rewindable(iter([torch.tensor([number]) for number in range(9)]))
    next(source)
    next(source).mul_(5)
    with pytest.raises(FailoverError, match="micro-batch 1 is needed again, but the script wrote into its tensors"):
        source.seek(1)


def test_a_script_that_writes_into_its_items_gets_copies(caplog: pytest.LogCaptureFixture) -> None:
    source = Rewindable(iter([torch.tensor([number]) for number in range(9)]))
    next(source)
    next(source).mul_(5)
    source.settle()
    assert "writes into its micro-batches; from now on it gets copies" in caplog.text
    next(source).mul_(5)
    source.seek(2)
    assert int(next(source)) == 2


def test_what_changes_in_a_process_of_the_loader_is_told() -> None:
    told: list[str] = []
    source = Rewindable(iter([Loaded(1, None), Loaded(2, "dataset.count")]), changed=told.append)
    assert take(source, 2) == [1, 2] and told == ["dataset.count"]


class Loader:
    """As build_pretraining_data_loader() makes them for micro-batches of 2 samples on 3 data-parallel ranks."""

    def __init__(self, consumed: int) -> None:
        self.batch_sampler = SimpleNamespace(consumed_samples=consumed, micro_batch_times_data_parallel_size=6)


def test_a_newcomers_loaders_begin_where_the_dead_ranks_stood() -> None:
    """Whatever Megatron takes for consumed: it counts evaluations that did not take place."""
    data = Data()
    assert data.loader(lambda consumed: None, 0) is None  # of an empty split
    loaders = [data.loader(Loader, consumed) for consumed in (60, 0)]
    iterators = [Rerun(iter(range(100))) for _ in loaders]
    data.track(iterators, None)
    take(iterators[0].iterable, 4)
    assert data.samples() == [84, 0]

    newcomers = Data()
    newcomers.begin_at(data.samples())
    loaders = [newcomers.loader(Loader, consumed) for consumed in (84, 16)]
    assert [loader.batch_sampler.consumed_samples for loader in loaders] == [84, 0]
    iterators = [Rerun(iter(range(100))) for _ in loaders]
    newcomers.track(iterators, data.positions())
    take(iterators[0].iterable, 1)
    assert newcomers.samples() == [90, 0]


def test_loaders_that_say_nothing_are_left_to_megatron() -> None:
    data = Data()
    data.loader(lambda consumed: SimpleNamespace(batch_sampler=SimpleNamespace()), 7)
    data.track([Rerun(iter("ab"))], None)
    assert data.samples() == [None]
    newcomers, given = Data(), list[int]()
    newcomers.begin_at([None])
    newcomers.loader(given.append, 7)
    assert given == [7]


def test_versions_keep_what_may_be_needed() -> None:
    data = Data()
    train = Rerun(iter(range(100)))
    data.track([train], None)
    for version in range(6):
        data.sealed(version, version - 2)
        take(train.iterable, 3)
    assert data.positions() == [18]
    data.seek([9])
    assert take(train.iterable, 2) == [9, 10]
    with pytest.raises(FailoverError, match="begins at 9"):
        data.seek([8])
