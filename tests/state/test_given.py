"""What a script gives to what is not its own, and what objects of libraries hold. The form of a script:
`tests.state.kinds`."""

from __future__ import annotations

import functools
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from ff_core.copy.page import StatusPage
from ff_core.state import given, tensor_attributes
from ff_core.worker.fence import Fence
from tests.state.kinds import Look, Numbers, Scripts, alone_with

SCRIPTS = script = Scripts()
LIBRARY = """
import random, numpy as np, torch
SCALE, COUNT = 1.0, 0
def tick():
    global COUNT
    COUNT += 1
    return COUNT
class Options:
    rate = 0.5
options = Options()
class Average:
    def __init__(self, parameters):
        self.shadow = [p.clone().detach() for p in parameters]
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.model.weight)
        torch.nn.init.ones_(self.model.bias)
    def update(self, parameters):
        with torch.no_grad():
            for held, p in zip(self.shadow, parameters):
                held.mul_(0.9).add_(p, alpha=0.1)
            self.model.weight.lerp_(parameters[0].mean().reshape(1, 1), 0.5)
class Noise:
    def __init__(self, seed):
        self.numbers, self.words = np.random.default_rng(seed), random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
    def draw(self):
        return self.numbers.random() + self.words.random() + float(torch.rand(1, generator=self.generator))
class Compose:
    def __init__(self, *parts):
        self.parts = parts
    def __call__(self):
        return [part() for part in self.parts]
"""
library: Any = ModuleType("somelib")
library.__file__ = str(Path(torch.__file__).parent.parent / "somelib.py")
exec(LIBRARY, library.__dict__)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone_with(monkeypatch, library)


class Count:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def counted() -> Callable[..., int]:
    calls = 0

    def call(*_: Any) -> int:
        nonlocal calls
        calls += 1
        return calls

    return call


@script
def attributes_of_a_library(look: Look, numbers: Numbers) -> Any:
    library.SCALE, library.COUNT, library.Options.rate, library.options.rate = 1.0, 0, 0.5, 0.25
    vars(library).pop("late", None)
    options = library.Options()
    seen: list[Any] = []
    look(0)
    for n in numbers:
        library.SCALE *= 1 + n / 10
        library.Options.rate *= 1 + n / 10
        library.options.rate *= 1 + n / 10
        library.late = getattr(library, "late", 0) + n
        options.late = getattr(options, "late", 0) + n
        seen += [library.SCALE, library.Options.rate, library.options.rate, library.late, options.late, library.tick()]
        look(n)
    return seen


@script
def attributes_of_what_nobody_looks_into(look: Look, numbers: Numbers) -> Any:
    log, distribution, layer = logging.getLogger("mine"), torch.distributions.Normal(0.0, 1.0), nn.Linear(1, 1)
    log.steps = 0  # type: ignore[attr-defined]
    torch.steps_of_mine = 0  # type: ignore[attr-defined]
    seen: list[Any] = []
    look(0)
    for n in numbers:
        log.steps += n  # type: ignore[attr-defined]
        torch.steps_of_mine += n  # type: ignore[attr-defined]
        distribution.loc = distribution.loc + n
        layer.hits = getattr(layer, "hits", 0) + n  # type: ignore[assignment]
        seen.append((log.steps, torch.steps_of_mine, distribution.loc.item(), layer.hits))  # type: ignore[attr-defined]
        look(n)
    return seen


@script
def an_average_of_a_library(look: Look, numbers: Numbers) -> Any:
    parameters = [torch.full((2,), float(each)) for each in range(40)]
    average = library.Average(parameters)
    look(0)
    for n in numbers:
        for p in parameters:
            p.add_(n)
        average.update(parameters)
        look(n)
    return [held.tolist() for held in average.shadow], average.model.weight.tolist()


@script
def models_in_containers(look: Look, numbers: Numbers) -> Any:
    models = {"a": [nn.Linear(1, 1), nn.Linear(1, 1)], "b": (nn.Linear(1, 1),)}
    held = [model for part in models.values() for model in part]
    for number, model in enumerate(held):
        nn.init.constant_(model.weight, number)
    newest, best = models["a"][0], held[2]
    del model, held
    look(0)
    for n in numbers:
        newest = models["a"][n % 2]
        with torch.no_grad():
            newest.weight.mul_(2).add_(n)
            best.weight.add_(n)
        look(n)
    return [[model.weight.item() for model in part] for part in models.values()], newest is models["a"][0]


@script
def generators_of_a_library(look: Look, numbers: Numbers) -> Any:
    noise, points = library.Noise(4), torch.quasirandom.SobolEngine(2, scramble=True, seed=1)
    bits = np.random.PCG64(3)
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen += [float(noise.draw()), points.draw(2).tolist(), np.random.Generator(bits).random()]
        look(n)
    return seen


@script
def the_scripts_own_in_a_library(look: Look, numbers: Numbers) -> Any:
    parts = library.Compose(Count(), counted())
    held = {Count(): 1}
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen += [parts(), [each() for each in held]]
        look(n)
    return seen


@script
def defaults_of_functions(look: Look, numbers: Numbers) -> Any:
    def draw(
        count: Count = Count(),  # noqa: B008
        own: random.Random = random.Random(2),  # noqa: B008
        numbers: Iterator[int] = itertools.count(),  # noqa: B008
        *,
        generator: torch.Generator = torch.Generator().manual_seed(1),  # noqa: B008
        steps: Iterator[int] = itertools.count(4),  # noqa: B008
    ) -> Any:
        return count(), own.random(), next(numbers), torch.rand(1, generator=generator).item(), next(steps)

    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen.append(draw())
        look(n)
    return seen


@script
def functions_of_classes(look: Look, numbers: Numbers) -> Any:
    class Owner:
        static, of_class, attribute = staticmethod(counted()), classmethod(counted()), property(counted())

    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen += [Owner.static(), Owner.of_class(), Owner().attribute]
        look(n)
    return seen


@script
def hooks_that_count(look: Look, numbers: Numbers) -> Any:
    def scaling() -> Callable[..., Any]:
        count = counted()
        return lambda *given: given[-1] * count()

    leaf, layer = torch.ones(2, requires_grad=True), nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    leaf.register_hook(scaling())
    layer.weight.register_hook(scaling())
    of_all = register_module_forward_hook(scaling())
    seen: list[Any] = []
    look(0)
    for n in numbers:
        leaf.grad = None
        layer.zero_grad()
        layer(leaf).sum().backward()
        assert leaf.grad is not None and layer.weight.grad is not None
        seen.append((leaf.grad.tolist(), layer.weight.grad.tolist()))
        look(n)
    of_all.remove()
    return seen


@script
def a_file_that_is_read(look: Look, numbers: Numbers) -> Any:
    path = Path(__file__)
    seen: list[Any] = []
    with path.open() as text, path.open("rb") as data:
        look(0)
        for n in numbers:
            seen += [text.readline(), data.read(7)]
            look(n)
    return seen


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_names_that_are_set() -> None:
    def sets(a: Any) -> None:
        a.one, a.two.three = 1, a.four
        a.five += 1
        setattr(a, "six", functools.partial(lambda: setattr(a.nine, "seven eight", 1)))  # noqa: B010

    code = sets.__code__
    assert tensor_attributes.set_in([code]) == {"one", "three", "five", "six"}


def test_what_the_frameworks_have_is_no_owners_number() -> None:
    """A library's own counts are looked at, those of torch are not."""
    place = given.OfGiven([("main().library", library), ("main().torch", torch)])
    assert "somelib.COUNT" in place.known and "torch.inf" not in place.known


def test_our_own_parts_are_no_owners() -> None:
    """A name of the script's code may lead to one; where a recovery leaves it, it knows itself."""
    page, log = StatusPage.create(), logging.getLogger("mine")
    fence: Any = Fence(page, epoch=0)
    owners = [owner for _, owner, _ in given._owners([("a", given), ("b", fence), ("c", Fence), ("d", log)], (), [])]
    page.close()
    assert owners == [log]


class Bare:
    """Like a TypeVar of Python 3.12: it has attributes, and no `__dict__` to read."""

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        raise AttributeError("__dict__")


def test_an_object_without_a_dictionary_is_no_owner() -> None:
    assert Bare.__dictoffset__
    with pytest.raises(TypeError):
        vars(Bare())
    assert not given._may_own(Bare())
