"""Variables whose contents Python does not show at once: weak references, what callables hold, iterators.

The form of a script: `tests.state.kinds`.
"""

from __future__ import annotations

import functools
import itertools
import queue
import random
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.state import covered
from ff_core.state.space import OfCallable
from ff_core.state.variables import Variables
from tests.state.kinds import Look, Numbers, Scripts, replaced

SCRIPTS = script = Scripts()


class Item:
    def __init__(self, name: str) -> None:
        self.name, self.hits = name, 0


DRAWS = random.Random(1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])


@script
def generators_made_in_the_loop(look: Look, numbers: Numbers) -> Any:
    """One in each iteration, and some in the first."""
    holder, held = Item("draws"), dict[str, Any]()
    total: list[Any] = []
    look(0)
    for n in numbers:
        noise = torch.Generator().manual_seed(n)
        if not held:
            held |= {"words": random.Random(3), "old": np.random.RandomState(3), "new": np.random.default_rng(3)}
            holder.draws = torch.Generator().manual_seed(7)  # type: ignore[attr-defined]
        draws = [float(torch.rand(1, generator=g)) for g in (noise, holder.draws)]  # type: ignore[attr-defined]
        total.append([*draws, *(held[name].random() for name in ("words", "new")), held["old"].rand()])
        look(n)
    return total


@script
def a_queue_without_a_lock(look: Look, numbers: Numbers) -> Any:
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for each in (5, "a", (1, 2)):
        jobs.put(each)
    total: list[Any] = []
    look(0)
    for n in numbers:
        jobs.put(n)
        jobs.put((n, n / 3))
        total.append(jobs.get())
        look(n)
    return total, [jobs.get() for _ in range(jobs.qsize())]


@script
def dicts_with_weak_references(look: Look, numbers: Numbers) -> Any:
    items, tensors = [Item(name) for name in "abc"], [torch.zeros(1), torch.ones(1)]
    hits: weakref.WeakKeyDictionary[Item, int] = weakref.WeakKeyDictionary({items[0]: 1})
    momentum = weakref.WeakKeyDictionary({tensor: torch.zeros(2) for tensor in tensors})
    by_name: weakref.WeakValueDictionary[str, Item] = weakref.WeakValueDictionary()
    chosen: weakref.WeakSet[Item] = weakref.WeakSet()
    best = weakref.ref(items[0])
    look(0)
    for n in numbers:
        item = items[n % 3]
        hits[item] = hits.get(item, 0) + n
        by_name[f"last {n % 2}"] = item
        (chosen.discard if item in chosen and n % 2 else chosen.add)(item)
        best = weakref.ref(items[-n % 3])
        for tensor in tensors:
            momentum[tensor].mul_(0.5).add_(n)
        look(n)
    found = best()
    assert found is not None
    return (
        [(item.name, count) for item, count in hits.items()],
        sorted((name, item.name) for name, item in by_name.items()),
        sorted(item.name for item in chosen),
        found.name,
        [value.tolist() for value in momentum.values()],
    )


@script
def what_callables_hold(look: Look, numbers: Numbers) -> Any:
    following = functools.partial(next, itertools.count(5))
    around = functools.partial(next, itertools.cycle("abc"))
    scaled = functools.partial(pow, 2.0)
    draw, drawn = np.random.default_rng(3).normal, functools.partial(random.Random(2).uniform, 0)
    append = [0].append
    seen: list[Any] = []
    look(0)
    for n in numbers:
        append(n)
        seen += [following(), around(), scaled(n), draw(), drawn(n), len(append.__self__)]  # type: ignore[attr-defined]
        look(n)
    return seen


@script
def seeds_that_spawn(look: Look, numbers: Numbers) -> Any:
    seeds, held = np.random.SeedSequence(7), {"a": np.random.SeedSequence([1, 2], spawn_key=(3,))}
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen.append(np.random.default_rng(seeds.spawn(1)[0]).integers(1000))
        seen.append(np.random.default_rng(held["a"].spawn(n)[-1]).integers(1000))
        look(n)
    return [int(number) for number in seen]


@script
def iterators_of_many_kinds(look: Look, numbers: Numbers) -> Any:
    held: list[Iterator[Any]] = [
        itertools.product([1, 2], "abc"), itertools.permutations(range(4)), itertools.combinations(range(5), 2),
        itertools.accumulate(range(1, 9)), filter(None, [1, 0, 2, 3, 0, 4, 5, 6, 7]),
        itertools.starmap(pow, [(2, n) for n in range(9)]), itertools.zip_longest([1, 2, 3, 4], "abcdefghi"),
        itertools.compress(range(20), itertools.cycle([1, 0])), map(abs, itertools.count(-9)),
        itertools.takewhile(lambda n: n < 100, itertools.count(5)), itertools.filterfalse(None, [0] * 9),
        itertools.dropwhile(lambda n: n < 3, range(30)),
    ]  # fmt: skip
    following, letter = itertools.count(3).__next__, iter("abcdefgh").__next__
    calls: list[int] = []
    asked = iter(lambda: calls.append(1) or len(calls), -1)  # type: ignore[func-returns-value]
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen += [next(each) for each in (*held, asked)]
        seen += [following(), letter()]
        look(n)
    return seen


@script
def an_event_and_a_semaphore(look: Look, numbers: Numbers) -> Any:
    event, places = threading.Event(), threading.Semaphore(9)
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen.append((event.is_set(), places._value))
        (event.clear if event.is_set() else event.set)()
        places.acquire()
        look(n)
    return seen


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_the_generators_behind_modules_are_no_variables() -> None:
    """Their states are saved with every version anyway: `ff_core.state.rng`."""
    names = [OfCallable("of.", held).known for held in (random.random, random.randint, np.random.rand)]
    assert names == [[], [], []]
    assert OfCallable("of.", random.Random(1).random).known == ["self"]


def a_weak_reference_to_what_is_new(look: Look, numbers: Numbers) -> Any:
    kept, newest = [], weakref.ref(DRAWS)
    look(0)
    for n in numbers:
        kept.append(Item(str(n)))
        newest = weakref.ref(kept[-1])  # type: ignore[arg-type]
        look(n)
    return newest() is not None


def an_iterator_that_holds_items(look: Look, numbers: Numbers) -> Any:
    pairs = itertools.pairwise(range(20))
    look(0)
    for n in numbers:
        next(pairs)
        look(n)
    return list(pairs)


def a_list_of_a_sparse_tensor(look: Look, numbers: Numbers) -> Any:
    held = [torch.eye(2).to_sparse()]
    look(0)
    for n in numbers:
        held[0] = held[0] * n
        look(n)
    return held[0].to_dense().tolist()


def averages_of_many_weights(look: Look, numbers: Numbers) -> Any:
    average = {n: torch.zeros(1 << 20) for n in range(3)}
    look(0)
    for n in numbers:
        for held in average.values():
            held.add_(n)
        look(n)
    return [held.sum().item() for held in average.values()]


def a_dict_with_other_keys(look: Look, numbers: Numbers) -> Any:
    kept: list[Any] = []
    seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
    look(0)
    for n in numbers:
        kept.append(torch.zeros(1))
        seen[kept[-1]] = n
        look(n)
    return len(seen)


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (a_weak_reference_to_what_is_new, "newest (ReferenceType"),
        (a_dict_with_other_keys, "seen (WeakKeyDictionary"),
        (an_iterator_that_holds_items, "pairs (pairwise"),
        (a_list_of_a_sparse_tensor, "held (a list of 1"),
        (averages_of_many_weights, "average (a dict of 3"),
    ],
)
def test_what_cannot_be_put_back_is_named(script: Any, word: str) -> None:
    wanted = f"{script.__name__}().{word}"
    assert [said[: len(wanted)] for said in replaced(script)[0]] == [wanted]


def test_a_queue_of_something_else_is_named() -> None:
    mine, jobs = Variables(), queue.SimpleQueue[Any]()
    mine.begin()
    jobs.put(torch.zeros(1))
    mine.save()
    assert any("jobs (SimpleQueue" in word for word in mine.written())
