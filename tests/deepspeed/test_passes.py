"""Loops over loaders that accelerate has prepared: a replacement's way into them, and which loops have one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ff_core.errors import UnsupportedError
from ff_core.state import codec
from ff_deepspeed.feed import Feed, Tracked
from ff_deepspeed.trainers import passes
from ff_deepspeed.trainers.passes import Passes


class Session:
    """A newcomer's, if `saved` is given."""

    def __init__(self, saved: dict[str, Any] | None) -> None:
        self.saved, self.is_newcomer = saved, saved is not None

    def saved_scalars(self) -> dict[str, Any]:
        assert self.saved is not None
        return self.saved


class Engine:
    """Instead of a Protection."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self.session = Session(saved)
        self.went_on, self.passed_over = 0, 0

    def pass_over(self) -> None:
        assert self.session.is_newcomer
        self.passed_over += 1

    def go_on_from_memory(self) -> None:
        self.went_on += 1

    def fail(self, error: Exception) -> Exception:
        return error


class Loader:
    """As accelerate's: counts its epochs."""

    def __init__(self) -> None:
        self.iteration = 0

    def set_epoch(self, epoch: int) -> None:
        self.iteration = epoch

    def items(self) -> Iterator[int]:
        yield from range(3)
        self.iteration += 1


def loop_over(found: Passes, loader: Loader, epochs: int, trained: Callable[[int, int], Any], statistics: int) -> None:
    """A script: passes before training, epochs of training. trained(epoch, item): before the item is trained on."""
    for _ in range(statistics):
        assert list(found.iterate(Loader.items, loader, 7)) == [0, 1, 2]
    for epoch in range(epochs):
        for item in found.iterate(Loader.items, loader, 7):
            trained(epoch, item)


@pytest.mark.parametrize("statistics", [0, 2])
@pytest.mark.parametrize("died_in", [0, 2])
def test_a_replacement_passes_over_the_epochs_that_were_over(statistics: int, died_in: int) -> None:
    found, loader = Passes(Engine()), Loader()  # type: ignore[arg-type]
    saved: list[Any] = []

    def take(epoch: int, item: int) -> None:
        if (epoch, item) == (0, 0):
            found.begins(True, True, False)
            found.save()
        if (epoch, item) == (died_in, 1):
            saved.append(codec.decode(codec.encode(found.save(), "loop")))

    loop_over(found, loader, 4, take, statistics)
    engine = Engine({"data": {"loader": 7}, "client": {"loop": saved[0], "led": True}})
    entered, loader = Passes(engine), Loader()  # type: ignore[arg-type]
    seen: list[tuple[int, int]] = []

    def join(epoch: int, item: int) -> None:
        if not seen:
            assert engine.went_on == 1 and engine.passed_over == died_in
            assert loader.iteration == statistics + died_in
            engine.session.is_newcomer = False
            entered.load(saved[0])
        seen.append((epoch, item))

    loop_over(entered, loader, 4, join, statistics)
    assert seen == [(epoch, item) for epoch in range(died_in, 4) for item in range(3)]
    assert engine.passed_over == died_in
    assert entered.save()["first"] == saved[0]["first"]


def test_a_script_that_finds_its_way_by_itself_passes_over_nothing() -> None:
    place = {"begun": {7: 3}, "first": {7: 1}, "epochs": {7: 2}, "can_be_entered": True}
    for data, led, change in (
        ({"loader": 7}, False, {}),
        ({"loader": 7, "start": True}, True, {}),
        ({"loader": 8}, True, {}),
        ({"loader": 7}, True, {"can_be_entered": False}),
    ):
        engine = Engine({"data": data, "client": {"loop": {**place, **change}, "led": led}})
        found = Passes(engine)  # type: ignore[arg-type]
        assert list(found.iterate(Loader.items, Loader(), 7)) == [0, 1, 2]
        assert engine.went_on == engine.passed_over == 0


class Asked:
    """Notes at every next() whether the loop is driven by it."""

    def __init__(self) -> None:
        self.driven: list[bool] = []

    def __iter__(self) -> Asked:
        return self

    def __next__(self) -> int:
        if self.driven:
            raise StopIteration
        self.driven.append(passes._drives())
        return 1


def by_generator(asked: Asked) -> Iterator[int]:
    for item in asked:  # noqa: UP028 - what a script does
        yield item


def by_yield_from(asked: Asked) -> Iterator[int]:
    yield from asked


def all_of(made: Any) -> None:
    for _ in made:
        pass


@pytest.mark.parametrize(
    ("script", "driven"),
    [
        (all_of, True),
        (lambda asked: all_of(enumerate(asked)), True),
        (lambda asked: all_of(by_generator(asked)), True),
        (lambda asked: all_of(by_yield_from(asked)), True),
        (lambda asked: next(asked), False),
        (lambda asked: next(by_generator(asked)), False),
        (lambda asked: next(enumerate(asked)), False),
    ],
    ids=["for", "enumerate", "generator", "yield-from", "next", "next-generator", "next-enumerate"],
)
def test_whether_the_loader_drives_the_loop(script: Callable[[Asked], Any], driven: bool) -> None:
    asked = Asked()
    script(asked)
    assert asked.driven == [driven]


def test_a_loop_that_asks_with_next_is_refused_by_its_line() -> None:
    found = Passes(Engine())  # type: ignore[arg-type]
    next(found.iterate(Loader.items, Loader(), 7))
    with pytest.raises(UnsupportedError, match=r"test_passes\.py:\d+: the loop asks .* next\(\).*batches\("):
        found.begins(True, True, False)
    with pytest.raises(UnsupportedError, match="come from no DataLoader"):
        found.begins(False, True, False)
    found.begins(True, True, True)  # a failure starts the script again: said, not refused
    assert not found.save()["can_be_entered"]


def test_a_loop_whose_batches_the_model_does_not_get_is_refused() -> None:
    found = Passes(Engine())  # type: ignore[arg-type]
    for _ in found.iterate(Loader.items, Loader(), 7):
        found.begins(True, True, False)
        with pytest.raises(UnsupportedError, match=r"test_passes\.py:\d+: the loader fetches ahead, .*batches\("):
            found.begins(True, False, False)


def test_batches_of_rank_0_are_refused_on_every_rank() -> None:
    for fed in (True, False):  # only rank 0 asks a DataLoader
        found = Passes(Engine())  # type: ignore[arg-type]
        for _ in found.dispatched(iter([1])):
            with pytest.raises(UnsupportedError, match=r"test_passes\.py:\d+: rank 0 loads .*dispatch_batches=False"):
                found.begins(fed, True, False)


# ---- the feed -------------------------------------------------------------------------------------------------------


def tracked(feed: Feed, loader: Any) -> Tracked:
    made = Tracked(7, loader, lambda: iter(loader), feed.next, feed.is_training)
    made.source.begin()
    return made


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_new_pass_is_the_place_of_a_version_that_is_sealed_at_its_begin(ahead: int) -> None:
    """Also where the pass before was left with a batch that was fetched ahead."""
    feed, loader = Feed(), DataLoader(torch.arange(6.0), batch_size=2)  # type: ignore[arg-type]
    first = tracked(feed, loader)
    batch = next(first)
    feed.begin_training(0, batch)
    feed.used(batch)
    for _ in range(ahead):
        next(first)
    assert feed.position(first)["consumed"] == 1
    feed.give_up(7)
    assert feed.position(first)["consumed"] == 1 and feed.position(first)["ahead"] == []
    second = tracked(feed, loader)
    place = feed.position(second)
    assert place["consumed"] == 0 and place["begun"] == second.place()["begun"]
    feed.seal(1)
    again = next(second)
    assert again.tolist() == [0.0, 1.0]
    feed.used(again)
    assert feed.position(second)["consumed"] == 1
    feed.return_to(1)
    assert next(second).tolist() == [0.0, 1.0]  # and not what was given up


def test_which_batch_is_trained_on_is_seen_by_memory_or_value() -> None:
    """Of a single one that was handed out nothing need be seen."""
    feed, other = Feed(), torch.full((2,), 9.0)
    asked = tracked(feed, DataLoader(torch.arange(6.0), batch_size=2))  # type: ignore[arg-type]
    first = next(asked)
    assert feed.sees(other)
    next(asked)
    assert feed.sees(first) and feed.sees({"x": first.double()}) and not feed.sees(other)
