"""Objects of libraries in variables. The form of a script: `tests.state.kinds`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ff_core.state.placed import Placed
from ff_core.state.variables import Variables
from tests.state.kinds import Look, Numbers, Scripts, alone_with, repeated, replaced

SCRIPTS = script = Scripts()
LIBRARY = """
import threading, numpy as np, torch
class Meter:
    def __init__(self):
        self.sum, self.count, self.last, self.lock = 0.0, 0, [], threading.Lock()
        self.mean, self.seen = np.zeros(2), torch.zeros(2)
    def update(self, value):
        self.sum += value
        self.count += 1
        self.last = [*self.last[-2:], value]
        self.mean = self.mean * 0.9 + value
        self.seen += value
class Record:
    def __init__(self, value):
        self.value = value
class Slots:
    __slots__ = ("value", "__weakref__")
class Tracker:
    def __init__(self):
        self.meters, self.best, self.parent = {"loss": Meter(), "accuracy": Meter()}, Record(Record(0)), self
        self.history, self.sums = [Record(1), 2.0], {"a": torch.zeros(1)}
    def update(self, value):
        for meter in self.meters.values():
            meter.update(value)
        self.best.value.value = max(self.best.value.value, 7 - value)
        self.history[0].value += value
        self.sums["a"] += value
    def shown(self):
        meters = [(m.sum, m.count, m.seen.tolist()) for m in self.meters.values()]
        return meters, self.best.value.value, self.history[0].value, self.sums["a"].item()
class Sender:
    def __init__(self):
        self.sent, self.thread = 0, threading.Thread(target=print)
"""
library: Any = ModuleType("somelib")
exec(LIBRARY, library.__dict__)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone_with(monkeypatch, library)


@script
def meters_of_a_library(look: Look, numbers: Numbers) -> Any:
    meter, held, record = library.Meter(), {"loss": library.Meter(), "other": [library.Meter()]}, library.Record(0)
    look(0)
    for n in numbers:
        for each in (meter, held["loss"], held["other"][0]):
            each.update(n / 3)
        record = library.Record(record.value + n)
        look(n)
    every = (meter, held["loss"], held["other"][0])
    return [(m.sum, m.count, m.last, m.mean.tolist(), m.seen.tolist()) for m in every], record.value


@script
def objects_in_objects_of_a_library(look: Look, numbers: Numbers) -> Any:
    tracker, shared = library.Tracker(), library.Meter()
    tracker.meters["shared"] = shared
    look(0)
    for n in numbers:
        tracker.update(n)
        shared.update(2 * n)
        look(n)
    return tracker.shown(), shared.count, tracker.meters["shared"] is shared


class Squares(Placed):
    """As an adapter's iterator over a data loader."""

    def __init__(self, name: str = "squares", own: bool = False) -> None:
        super().__init__(name)
        self.at, self.own = 0, own

    def __iter__(self) -> Squares:
        return self

    def __next__(self) -> int:
        self.at += 1
        return self.at**2

    def goes_on_by_itself(self) -> bool:
        return self.own

    def count(self) -> int:
        return self.at

    def place(self) -> int:
        return self.at

    def go_to(self, place: int) -> None:
        self.at = place


@script
def iterators_in_variables(look: Look, numbers: Numbers) -> Any:
    squares, counted, total = Squares(), enumerate(Squares("others")), 0
    look(0)
    for n in numbers:
        number, value = next(counted)
        total = 3 * total + n * next(squares) + number * value
        look(n)
    return total


@script
def iterators_that_zip_holds(look: Look, numbers: Numbers) -> Any:
    def items() -> Iterator[int]:
        look(0)
        yield from numbers

    total = 0
    for n, value in zip(items(), Squares(), strict=False):
        total = 3 * total + n * value
        look(n)
    return total


@script
def an_iterator_that_goes_on_by_itself(look: Look, numbers: Numbers) -> Any:
    squares, total = Squares(own=True), 0
    look(0)
    for n in numbers:
        squares.at = n  # somebody else does that
        total = 3 * total + n * next(squares)
        look(n)
    return total


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def an_iterator_of_another_loader(look: Look, numbers: Numbers) -> Any:
    checks, found = iter(DataLoader(torch.arange(40), batch_size=2)), 0  # type: ignore[arg-type]
    look(0)
    for n in numbers:
        found += int(next(checks).sum())
        look(n)
    return found


def test_what_cannot_be_put_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    script = an_iterator_of_another_loader
    wanted = f"{script.__name__}().checks (an iterator of a DataLoader"
    assert [said[: len(wanted)] for said in replaced(script)[0]] == [wanted]
    assert [said[: len(wanted)] for said in repeated(script, monkeypatch)[0]] == [wanted]


def test_what_cannot_be_saved_is_named_while_training_runs() -> None:
    mine, checks = Variables(), iter(DataLoader(torch.arange(8)))  # type: ignore[arg-type]
    mine.begin()
    next(checks)
    mine.save()
    name = "test_what_cannot_be_saved_is_named_while_training_runs().checks (an iterator of a DataLoader)"
    assert name in mine.written()


def test_an_iterator_that_goes_on_with_the_data_is_left_alone() -> None:
    dead, mine, lost = Variables(), Variables(), list[str]()

    def loop(first: Variables, saved: Any) -> None:
        batches: Iterator[Any] = iter(DataLoader(torch.arange(8)))  # type: ignore[arg-type]
        first.begin()
        if saved:
            lost.extend(first.load(saved, repeats=True)[0])
        for _ in range(2):
            made.append(first.save())
            next(batches)
            first.fetched()

    made = list[Any]()
    loop(dead, None)
    loop(mine, made[1])
    assert [word for word in lost if "batches" in word] == []


def test_an_object_of_a_library_that_is_made_anew_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch, for instance: the very object is kept to be handed out again."""

    def anew(look: Look, numbers: Numbers) -> Any:
        batch, seen = library.Meter(), []
        look(0)
        for n in numbers:
            batch = library.Meter()
            batch.update(n)
            seen.append((batch, n))
            look(n)
        return [meter.sum == n for meter, n in seen]

    lost, now = repeated(anew, monkeypatch)
    assert all(eval(now))
    assert lost == []


def test_classes_without_attributes_are_left_alone() -> None:
    slots = library.Slots()
    mine = Variables()
    mine.begin()
    slots.value = 1
    mine.save()
    assert not [word for word in mine.written() if "slots" in word]


def test_what_has_a_thread_in_an_object_of_a_library_goes_on_by_itself() -> None:
    from ff_core.state import foreign

    record = library.Record(library.Sender())
    assert foreign.simple_parts(record) == ({}, False)
    assert list(foreign.simple_parts(library.Record(library.Record(1)))[0]) == ["value"]


def test_simple_parts_are_small_and_plain() -> None:
    from ff_core.state import foreign

    meter = library.Meter()
    meter.words, meter.large = {str(n): n for n in range(3000)}, np.zeros(1 << 20)
    meter.graph = torch.zeros(2, requires_grad=True)
    meter.ordered = OrderedDict(lock=meter.lock)  # its keys alone are plain
    simple, whole = foreign.simple_parts(meter)
    assert sorted(simple) == ["count", "last", "mean", "seen", "sum"]
    assert not whole
    assert foreign.simple_parts(library.Record(1)) == ({"value": 1}, True)
