"""Caches of a script's functions: what is in one is put back, or computed again. The form of a script:
`tests.state.kinds`."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch

from ff_core.state import caches, covered, purity
from ff_core.state.variables import Variables
from tests.state.kinds import Look, Numbers, Scripts, repeated, replaced, right

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


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def draws_for_many(look: Look, numbers: Numbers, count: int = caches.MOST + 50) -> Any:
    draws = random.Random(3)

    @functools.cache
    def noise(n: int) -> float:
        return draws.random()

    for n in range(count):
        noise(n)
    seen = []
    look(0)
    for n in numbers:
        seen += [noise(10**6 + n // 2), noise(n)]
        look(n)
    return seen


def adds(a: int) -> int:
    return a + len(SCRIPTS)


def draws_a_seed(a: int) -> float:
    return adds(a) + DRAWS.random()


def calls_what_draws(a: int) -> float:
    return draws_a_seed(a)


def sets_a_number(a: int) -> int:
    global _number
    _number = a
    return a


_number = 0


def draws_from_torch(a: int) -> float:
    return float(torch.rand(a).sum())


@pytest.mark.parametrize(
    ("function", "is_pure"),
    [(adds, True), (draws_a_seed, False), (calls_what_draws, False), (sets_a_number, False), (draws_from_torch, False)],
)
def test_what_seems_pure(function: Any, is_pure: bool) -> None:
    assert purity.seems_pure(function) == is_pure


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


def test_a_large_cache_of_a_pure_function_is_left_alone() -> None:
    @functools.cache
    def double(number: int) -> int:
        return 2 * number

    mine = Variables()
    mine.begin()
    double(1)
    path = "test_a_large_cache_of_a_pure_function_is_left_alone().double"
    assert mine.save()["changed"][path][0][0] == "cache"
    for number in range(caches.MOST + 1):
        double(number)
    assert mine.save()["changed"][path][0] == ["left"]


def test_a_large_cache_of_a_function_that_draws_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replaced(draws_for_many) == ([], right(draws_for_many))
    assert repeated(draws_for_many, monkeypatch) == ([], right(draws_for_many))


def test_a_method_that_draws_from_its_objects_generator_is_not_pure() -> None:
    class Owner:
        def __init__(self) -> None:
            self.own = random.Random(1)

        def draw(self, n: int) -> float:
            return n * self.own.random()

    assert not purity.seems_pure(Owner.draw, Owner()) and purity.seems_pure(adds, 3)
