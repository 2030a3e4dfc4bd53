"""Variables whose contents Python does not show at once: caches, weak references, what callables hold.

The form of a script: `tests.state.kinds`.
"""

from __future__ import annotations

import functools
import itertools
import queue
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from ff_core.state import caches, covered
from ff_core.state.space import OfCallable
from ff_core.state.variables import Variables
from tests.state.kinds import Look, Numbers, Scripts, repeated, replaced

SCRIPTS = script = Scripts()


class Item:
    def __init__(self, name: str) -> None:
        self.name, self.hits = name, 0

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def scaled(self, by: int) -> float:
        return by * DRAWS.random()


DRAWS = random.Random(1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])


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
def caches_of_functions_that_draw(look: Look, numbers: Numbers) -> Any:
    draws, factor = random.Random(3), 2

    @functools.cache
    def noise(n: int, *, scale: float = 1.0) -> float:
        return scale * draws.random() * factor

    @functools.lru_cache(maxsize=2)
    def last(n: int, kind: str = "a") -> Any:
        return torch.full((2,), draws.random())

    @functools.lru_cache(maxsize=3, typed=True)
    def typed(n: float, by: Any = None) -> float:
        return draws.random()

    noise(1)
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen += [noise(n // 2), noise(n % 2, scale=3.0), last(n % 3).tolist(), last(n // 3, kind="b").tolist()]
        seen += [typed(n % 2), typed(float(n % 2)), typed(n % 3, by="x")]
        look(n)
    return seen


@script
def a_cache_that_holds_one_object(look: Look, numbers: Numbers) -> Any:
    @functools.cache
    def counts() -> dict[str, int]:
        return {"all": 0}

    @functools.cache
    def item(name: str) -> Item:
        return Item(name)

    counts()
    item("a")
    look(0)
    for n in numbers:
        counts()["all"] += n
        item("a").hits += n
        item("b").hits += 2 * n
        look(n)
    return counts(), item("a").hits, item("b").hits


@script
def a_cached_method(look: Look, numbers: Numbers) -> Any:
    DRAWS.seed(1)
    Item.scaled.cache_clear()
    items = [Item("a"), Item("b")]
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen += [each.scaled(n // 3) for each in items]
        look(n)
    return seen


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


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_the_generators_behind_modules_are_no_variables() -> None:
    """Their states are saved with every version anyway: `ff_core.state.rng`."""
    names = [OfCallable("of.", held).known for held in (random.random, random.randint, np.random.rand)]
    assert names == [[], [], []]
    assert OfCallable("of.", random.Random(1).random).known == ["self"]


def test_a_cache_is_read_and_filled() -> None:
    for size, typed in ((None, False), (3, True)):
        calls: list[Any] = []

        @functools.lru_cache(maxsize=size, typed=typed)
        def double(number: Any, by: Any = 1, calls: Any = calls) -> Any:
            calls.append(number)
            return 2 * number

        double(1), double(2, by="a"), double(1)
        wanted = [caches.Entry((2,), {"by": "a"}, 4), caches.Entry((1,), {}, 2)]
        assert caches.is_users(double)
        assert sorted(caches.entries(double)) == sorted(wanted)
        caches.fill(double, [caches.Entry((7,), {"by": (1,)}, "seven"), *wanted])
        assert (double(7, by=(1,)), double(1), calls) == ("seven", 2, [1, 2])
        assert double(5) == 10 and calls[-1] == 5


def test_a_cache_of_what_cannot_be_saved_computes_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def opens(look: Look, numbers: Numbers) -> Any:
        @functools.cache
        def made(n: int) -> Any:
            return (n * k for k in (1, 2))

        look(0)
        for n in numbers:
            made(n)
            look(n)
        return made.cache_info().currsize >= 1

    assert replaced(opens) == ([], "True")
    assert repeated(opens, monkeypatch) == ([], "True")


def test_a_large_cache_is_taken_for_one_of_a_pure_function() -> None:
    @functools.cache
    def double(number: int) -> int:
        return 2 * number

    mine = Variables()
    mine.begin()
    double(1)
    path = "test_a_large_cache_is_taken_for_one_of_a_pure_function().double"
    assert mine.save()["changed"][path][0][0] == "cache"
    for number in range(caches.MOST + 1):
        double(number)
    assert mine.save()["changed"][path][0] == ["left"]


def a_weak_reference_to_what_is_new(look: Look, numbers: Numbers) -> Any:
    kept, newest = [], weakref.ref(DRAWS)
    look(0)
    for n in numbers:
        kept.append(Item(str(n)))
        newest = weakref.ref(kept[-1])  # type: ignore[arg-type]
        look(n)
    return newest() is not None


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
    [(a_weak_reference_to_what_is_new, "newest (ReferenceType"), (a_dict_with_other_keys, "seen (WeakKeyDictionary")],
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
