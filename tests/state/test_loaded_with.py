"""What a loader's objects have when an item is loaded, and how another process gets it."""

from __future__ import annotations

import os
import queue
import random
from collections.abc import Iterator
from typing import Any

import torch

from ff_core.state import codec, loaded_with
from ff_core.state.loaded_with import LoadedWith

OWN = random.Random(3)
counted = 0


class Inner:
    strength = 1.0  # of the class

    def __init__(self) -> None:
        self.difficulty, self.size, self.mode, self.opened = 0, 8, "easy", False
        self.generator = torch.Generator().manual_seed(1)


class Data:
    def __init__(self) -> None:
        self.inner, self.table, self.read = Inner(), {"rate": 0.5}, 0

    def __getitem__(self, index: int) -> float:
        global counted
        counted += 1
        note.calls += 1  # type: ignore[attr-defined]
        return OWN.random()


def note() -> None:
    """It has a number."""


note.calls = 0  # type: ignore[attr-defined]


def wire(taken: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = codec.decode(codec.encode(taken.value()))
    return decoded


def test_what_the_loop_and_what_loading_changes_goes_with_the_item() -> None:
    data = Data()
    had = LoadedWith(data)
    first = had.now()
    assert wire(first) == {}
    data.read += 1  # while the item is loaded
    had.now(loaded=True)
    before = had.now()
    data.inner.difficulty, data.table["rate"], data.inner.mode = 3, 0.25, "hard"
    Inner.strength = 2.0
    now = wire(had.now())
    Inner.strength = 1.0
    other = Data()
    loaded_with.put(other, now)
    assert (other.inner.difficulty, other.table["rate"], other.inner.mode, Inner.strength) == (3, 0.25, "hard", 2.0)
    assert other.read == 1
    # An earlier item was loaded with what was there then, though only later it was known what changes.
    loaded_with.put(other, wire(before))
    assert (other.inner.difficulty, other.inner.mode, Inner.strength, other.read) == (0, "easy", 1.0, 1)
    assert wire(first)["read"] == 0


def test_generators_that_others_draw_from() -> None:
    data = Data()
    had = LoadedWith(data)
    had.now()
    torch.rand(3, generator=data.inner.generator)  # an evaluation
    OWN.random()
    saved = wire(had.now())
    wanted = torch.rand(3, generator=data.inner.generator), OWN.random()
    OWN.seed(9)
    other = Data()
    loaded_with.put(other, saved)
    assert torch.equal(torch.rand(3, generator=other.inner.generator), wanted[0]) and OWN.random() == wanted[1]


def test_globals_and_functions_that_loading_asks_for_by_name() -> None:
    global counted
    counted = note.calls = 0  # type: ignore[attr-defined]
    data = Data()
    had = LoadedWith(data)
    had.now()
    data[0]
    saved = wire(had.now(loaded=True))
    counted = note.calls = 0  # type: ignore[attr-defined]
    loaded_with.put(Data(), saved)
    assert (counted, note.calls) == (1, 1)  # type: ignore[attr-defined]


def test_a_flag_that_loading_sets_says_what_this_process_has_done() -> None:
    data = Data()
    had = LoadedWith(data)
    had.now()
    data.inner.opened, data.read = True, 1
    saved = wire(had.now(loaded=True))
    assert "inner.opened" not in saved and saved["read"] == 1


def test_what_is_gone_is_left() -> None:
    data = Data()
    had = LoadedWith(data)
    had.now()
    del data.table["rate"]
    data.read = 2
    other = Data()
    loaded_with.put(other, wire(had.now()))
    assert other.read == 2 and other.table == {"rate": 0.5}


class Lazy:
    """Makes what it needs when it first loads, and does not like to be set."""

    def __init__(self) -> None:
        self.fd, self.level, self.queue = -1, -1, queue.Queue[int]()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value if name != "level" else value + 1)


def test_an_attribute_that_loading_makes_is_made_in_another_process_too() -> None:
    data, other = Lazy(), Lazy()
    had = LoadedWith(data)
    had.now()
    data.count = 1  # type: ignore[attr-defined]
    first = wire(had.now(loaded=True))
    data.count += 1  # type: ignore[attr-defined]
    loaded_with.put(other, wire(had.now(loaded=True)))
    assert first == {"count": 1} and other.count == 2  # type: ignore[attr-defined]


def test_what_is_put_back_is_what_it_was_whatever_the_class_does() -> None:
    data, other = Lazy(), Lazy()
    had = LoadedWith(data)
    data.level = 6
    loaded_with.put(other, wire(had.now()))
    assert other.level == data.level == 7


def test_the_number_of_an_open_file_is_of_this_process() -> None:
    data, other = Lazy(), Lazy()
    had = LoadedWith(data)
    had.now()
    with open(os.devnull) as file:
        data.fd = file.fileno()
        assert wire(had.now(loaded=True)) == {}
        loaded_with.put(other, wire(had.now()))
        assert other.fd == -1
        data.fd += 1  # it counts
        assert wire(had.now(loaded=True)) == {"fd": data.fd}


def test_what_others_do_with_a_queue_is_left_alone() -> None:
    data = Lazy()
    had = LoadedWith(data)
    had.now()
    data.queue.put(1)
    assert wire(had.now(loaded=True)) == {}


def numbers() -> Iterator[int]:
    global counted
    while True:
        counted += 1
        yield counted


def test_globals_that_a_generator_asks_for() -> None:
    global counted
    counted = 0
    data = {"items": numbers()}
    had = LoadedWith(data)
    next(data["items"])
    saved = wire(had.now(loaded=True))
    counted = 0
    loaded_with.put(data, saved)
    assert counted == 1
