"""Another process goes to a place in the data, and loads only what it must."""

from __future__ import annotations

import gc
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from ff_core.errors import FailoverError
from ff_core.state import codec, loading, rng, source
from ff_core.state.source import Source, resolved

ITEMS, CONSUMED = 48, 9


class Plain(Dataset[torch.Tensor]):
    """Writes down what it loads, in whichever process."""

    def __init__(self, log: Path) -> None:
        self.log = str(log)

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> torch.Tensor:
        with open(self.log, "a") as file:
            file.write(f"{index}\n")
        return torch.tensor([index, self.more()])

    def more(self) -> float:
        return 0.0


class Noisy(Plain):
    def more(self) -> float:
        return random.random() + float(torch.rand(())) + float(np.random.rand())


class Counting(Plain):
    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.count = 0

    def more(self) -> float:
        self.count += 1
        return float(self.count)


class Own(Plain):
    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.generator = torch.Generator().manual_seed(3)

    def more(self) -> float:
        return float(torch.rand((), generator=self.generator))


class _Cell:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Slots(Plain):
    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.cells = deque([_Cell()])

    def more(self) -> float:
        self.cells[0].count += 1
        return float(self.cells[0].count)


class Hidden(Plain):
    """Counts where nobody can look."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.numbers = itertools.count()

    def more(self) -> float:
        return float(next(self.numbers))


def loader_of(kind: type[Plain], log: Path, **given: Any) -> DataLoader[torch.Tensor]:
    if "batch_sampler" in given:
        return DataLoader(kind(log), **given)
    return DataLoader(kind(log), **{"batch_size": 2, "shuffle": True, **given})


def loaded(log: Path) -> int:
    return len(log.read_text().splitlines())


def take(iterator: Source, count: int) -> list[Any]:
    """As a training loop that draws random numbers itself."""
    items = []
    for _ in range(count):
        items.append(iterator.next().tolist())
        torch.rand(3)
        random.random()
    return items


def gone_to(tmp_path: Path, kind: type[Plain], consumed: int = CONSUMED, **given: Any) -> int:
    """Items that a second process loads to go where the first one was. What follows there must be the same."""

    def make(log: Path) -> DataLoader[torch.Tensor]:
        own = {"generator": torch.Generator().manual_seed(7)} if given.get("generator") else {}
        return loader_of(kind, log, **{**given, **own})

    torch.manual_seed(1)
    first = make(tmp_path / "first")
    one = Source(first, lambda: iter(first))
    take(one, consumed)
    position, states = codec.decode(codec.encode(resolved(one.position()))), rng.capture()
    wanted = take(one, 4)

    torch.manual_seed(99)
    second = make(tmp_path / "second")
    other = Source(second, lambda: iter(second))
    other.seek(position)
    rng.restore(states)
    before = loaded(tmp_path / "second")
    assert take(other, 4) == wanted
    assert other.consumed == consumed + 4
    assert (first.collate_fn, first.worker_init_fn) == (second.collate_fn, second.worker_init_fn)
    assert type(second.batch_sampler) in (BatchSampler, type(None))
    return before


@pytest.mark.parametrize(
    "given",
    [{}, {"generator": True}, {"shuffle": False}, {"batch_size": None, "shuffle": False},
     {"batch_sampler": BatchSampler(SequentialSampler(range(ITEMS)), 2, drop_last=True)}],
    ids=["global seed", "own generator", "in order", "no batches", "batch sampler"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Plain, Noisy])
def test_only_the_last_two_are_loaded(tmp_path: Path, kind: type[Plain], given: dict[str, Any]) -> None:
    """What the training process draws is put back with its random state."""
    assert gone_to(tmp_path, kind, **given) == (2 if given.get("batch_size", 1) is None else 4)


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])  # one that is spawned imports everything
def test_processes_load_little_before_they_are_where_they_were(tmp_path: Path, context: str, workers: int) -> None:
    """Two batches, and what a loader's processes load ahead: two for each."""
    items = gone_to(tmp_path, Plain, 12, num_workers=workers, multiprocessing_context=context)
    assert 4 <= items <= 2 * (2 + 2 * workers)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Counting, {}),
        (Own, {}),
        (Slots, {}),
        (Hidden, {"num_workers": 2}),
        (Noisy, {"num_workers": 2}),
        (Counting, {"num_workers": 2}),
        (Plain, {"num_workers": 2, "persistent_workers": True}),
    ],
)
def test_everything_is_loaded_where_loading_leaves_something_behind(
    tmp_path: Path, kind: type[Plain], given: dict[str, Any]
) -> None:
    assert gone_to(tmp_path, kind, **given) >= 2 * CONSUMED


def test_processes_of_a_loader_end_with_it(tmp_path: Path) -> None:
    """Nothing holds it in a cycle: when garbage is collected, torch waits 5 s for each process that is ended."""

    def trained() -> list[psutil.Process]:
        loader = loader_of(Plain, tmp_path / "log", num_workers=2, persistent_workers=True)
        for _ in range(2):
            assert len(list(source_of(Source(loader, lambda: iter(loader))))) == ITEMS // 2
        return [psutil.Process(worker.pid) for worker in loader._iterator._workers]  # type: ignore[union-attr]

    gc.disable()
    try:
        _, alive = psutil.wait_procs(trained(), timeout=3)
    finally:
        gc.enable()
    assert not alive


def source_of(source: Source) -> Iterator[Any]:
    try:
        while True:
            yield source.next()
    except StopIteration:
        return


def test_a_position_grows_by_one_epoch_at_a_time(tmp_path: Path) -> None:
    loader = loader_of(Plain, tmp_path / "log", num_workers=1, persistent_workers=True, batch_size=ITEMS)
    sizes = []
    for _ in range(6):
        source = Source(loader, lambda: iter(loader))
        list(source_of(source))
        sizes.append(len(codec.encode(resolved(source.position()))))
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(steps) < 1.2 * min(steps)


def test_what_nobody_can_see_is_refused_in_the_training_process(tmp_path: Path) -> None:
    with pytest.raises(FailoverError, match=f"batch {CONSUMED} of the replacement is not the one"):
        gone_to(tmp_path, Hidden)


def test_loaders_of_other_kinds_load_everything(tmp_path: Path) -> None:
    class Own(DataLoader[torch.Tensor]):
        def __iter__(self) -> Any:
            return super().__iter__()

    assert loading.unseen(Own(Plain(tmp_path / "log"))) == loading.UNKNOWN
    assert loading.unseen(DataLoader(Stream())) == loading.UNKNOWN
    assert loading.unseen([torch.ones(1)]) == loading.UNKNOWN
    assert loading.unseen(DataLoader(Plain(tmp_path / "log"))) is None


class Stream(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def test_a_long_way_is_said_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_LONG_S", 0.0)
    with caplog.at_level(logging.WARNING, "ff_core"):
        gone_to(tmp_path, Counting)
    assert f"{CONSUMED} batches that lie before the failure were loaded again" in caplog.text
    assert "as loading changes dataset.count" in caplog.text


def test_a_shorter_sampler_is_an_error(tmp_path: Path) -> None:
    first = loader_of(Plain, tmp_path / "first")
    one = Source(first, lambda: iter(first))
    take(one, CONSUMED)
    second = DataLoader(torch.utils.data.Subset(Plain(tmp_path / "second"), range(8)), batch_size=2, shuffle=True)
    with pytest.raises(FailoverError, match=f"ended after .* had consumed {CONSUMED}"):
        Source(second, lambda: iter(second)).seek(resolved(one.position()))


class Changing(Dataset[int]):
    """A number changes at the batch `at`, in an array of `size` or by itself."""

    def __init__(self, at: int, size: int = 0) -> None:
        self.at, self.number, self.array = at, 0.5, np.zeros(size)

    def __getitem__(self, index: int) -> int:
        if index == self.at - 1:
            self.number = 1.0
            self.array[:] = 1.0
        return index


@pytest.mark.parametrize(("at", "size", "noticed", "path"), [(5, 0, 5, "number"), (5, 10, 8, "array"), (1, 10, 0, "")])
def test_when_a_change_is_noticed(at: int, size: int, noticed: int, path: str) -> None:
    """Single numbers at once, arrays at the next look at everything; what the first batch makes is no change."""
    data = Changing(at, size)
    if size:
        data.__dict__.pop("number")
        data.__class__ = type("Changing", (Changing,), {"number": property(lambda self: 0, lambda self, value: None)})
    watch = loading.Watch(DataLoader(data, batch_size=1))
    said = [watch.collate([data[index]]).changed for index in range(9)]
    first = next((number for number, changed in enumerate(said, 1) if changed), 0)
    assert (first, said[-1]) == (noticed, f"dataset.{path}" if path else None)


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random, np.random.rand, lambda: None])
def test_a_draw_in_a_loaders_process_is_noticed(draw: Callable[[], Any]) -> None:
    begun: list[int] = []
    loader = DataLoader(Changing(0), batch_size=1, num_workers=1, worker_init_fn=begun.append)
    watch = loading.Watch(loader)
    watch.begin(5)
    assert watch.collate([1]).changed is None
    drawn = draw()
    assert [watch.collate([1]).changed for _ in range(2)] == [None if drawn is None else loading.RANDOM] * 2
    assert begun == [5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned_as_ever(tmp_path: Path, workers: int) -> None:
    data = loader_of(Plain, tmp_path / "log", num_workers=workers, pin_memory=True)
    assert Source(data, lambda: iter(data)).next().is_pinned()
