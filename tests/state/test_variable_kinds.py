"""Variables of many kinds: a replacement goes on with them, and a survivor repeats an iteration with them.

Each function is a script: see `tests.state.kinds`.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections import OrderedDict, defaultdict, deque, namedtuple
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from ff_core.state import covered
from ff_core.state.variables import Variables
from tests.state.kinds import Look, Numbers, Scripts

SCRIPTS = script = Scripts()


class State(NamedTuple):
    step: int = 0
    average: Any = 0.0


class Options(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class Ring(deque):  # type: ignore[type-arg]
    pass


class Whole(int):
    pass


@dataclasses.dataclass(slots=True)
class Slotted:
    step: int = 0
    seen: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Record:
    step: int = 0


class Phase(enum.Enum):
    WARM, MAIN = 1, 2


class Meter:
    def __init__(self) -> None:
        self.window: deque[int] = deque(maxlen=3)
        self.all: list[int] = []

    def update(self, value: int) -> None:
        self.window.append(value)
        self.all.append(value)


class Node:
    def __init__(self, value: int, before: Node | None = None) -> None:
        self.value, self.before = value, before


class Average(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.updates, self.total = 0, torch.zeros(1)
        self.register_buffer("weight", torch.zeros(2))


class Trainer:
    class Clock:
        ticks = 0


def weak(value: int) -> int:
    weak.calls += 1  # type: ignore[attr-defined]
    return value


def strong(value: int, cache: dict[str, int] = {"calls": 0}) -> int:  # noqa: B006
    cache["calls"] += 1
    return 2 * value + cache["calls"]


@script
def tuples_and_containers_of_other_classes(look: Look, numbers: Numbers) -> Any:
    Local = namedtuple("Local", "a b")
    state, local, held, options, ring = State(), Local(0, 0), [State()], Options(n=0, sub=Options(n=1)), Ring([1], 3)
    look(0)
    for n in numbers:
        state, local = State(n, state.average + torch.ones(1)), Local(local.a + n, 1)
        held[0] = held[0]._replace(step=held[0].step + 1)
        options.n += n
        options.sub.n += 2
        ring.append(ring[-1] + n)
        look(n)
    return state, local, held, options, list(ring), ring.maxlen


@script
def objects_of_all_kinds(look: Look, numbers: Numbers) -> Any:
    slotted, record, phase, in_dict = Slotted(), Record(), Phase.WARM, {"loss": Meter()}
    meters: dict[str, Meter] = defaultdict(Meter)
    one, chain, best, deep = Meter(), Node(0), None, {"a": [{"b": {"c": [{"d": [0, torch.zeros(1)]}]}}]}
    look(0)
    for n in numbers:
        slotted.step += 1
        slotted.seen.append(n)
        record = dataclasses.replace(record, step=record.step + n)
        phase = Phase.MAIN if n > 1 else phase
        in_dict["loss"].update(n)
        meters["new"].update(n)
        if n % 2 == 0:
            one = Meter()
        one.update(n)
        chain = Node(n, chain)
        best = Record(n) if best is None or n % 2 else best
        deep["a"][0]["b"]["c"][0]["d"][0] += n  # type: ignore[index]
        look(n)
    values, node = [], chain
    while node is not None:
        values.append(node.value)
        node = node.before  # type: ignore[assignment]
    held = [meter.all for meter in (one, in_dict["loss"], *meters.values())]
    return dataclasses.asdict(slotted), record, phase, held, list(one.window), values, best, deep, Phase.WARM.value


@script
def what_functions_classes_and_models_have(look: Look, numbers: Numbers) -> Any:
    weak.calls = Trainer.Clock.ticks = 0  # type: ignore[attr-defined]
    strong.__defaults__[0]["calls"] = 0  # type: ignore[index]
    average, augment, by_phase, by_model = Average(), weak, {Phase.WARM: 0, Phase.MAIN: 0}, {nn.Linear(1, 1): 0}
    look(0)
    for n in numbers:
        average.updates += 1
        average.total = average.total + n
        average.weight.add_(augment(n))  # type: ignore[operator]
        augment = strong if n > 1 else augment
        Trainer.Clock.ticks += 1
        by_phase[Phase.MAIN] += n
        by_model[next(iter(by_model))] += n
        look(n)
    shown = average.updates, average.total, average.weight
    return shown, weak.calls, strong(0), Trainer.Clock.ticks, by_phase, list(by_model.values())  # type: ignore[attr-defined]


@script
def iterators(look: Look, numbers: Numbers) -> Any:
    cycle, chain, zipped = (
        itertools.cycle([1, 2, 3, 4]),
        itertools.chain([1, 2], range(3, 9)),
        zip("abcdefgh", range(9), strict=False),
    )
    numbered, keys, back, mapped = (
        enumerate([5] * 9),
        iter({n: n for n in range(9)}),
        reversed([*range(9)]),
        map(abs, [*range(9)]),
    )
    look(0)
    for n in numbers:
        for one in (cycle, chain, zipped, numbered, keys, back, mapped):
            next(one)
        look(n)
    return [next(one) for one in (cycle, chain, zipped, numbered, keys, back, mapped)]


@script
def values_that_never_change(look: Look, numbers: Numbers) -> Any:
    path, part, whole, number = Path("a"), Fraction(1, 2), Whole(0), np.float32(0)
    look(0)
    for n in numbers:
        path, part, whole, number = path / str(n), part + n, Whole(whole + n), number + np.float32(1)
        look(n)
    return str(path), part, whole, type(whole), number


@script
def one_of_many(look: Look, numbers: Numbers) -> Any:
    pairs, tensors, table, data = [[n, 0.0] for n in range(500)], [torch.zeros(1) for _ in range(200)], {}, bytearray(2)
    table.update(dict.fromkeys(range(500), (0, 0.0)))
    array = np.zeros(2, dtype=[("a", "i4")])
    look(0)
    for n in numbers:
        pairs[7][1] += n
        tensors[199] += n
        table[7] = (n, 0.5)
        data[0] += n
        array["a"] += n
        look(n)
    return pairs, float(tensors[199]), table, data, array.tolist()


@script
def two_names_of_one(look: Look, numbers: Numbers) -> Any:
    phases = [Meter(), Meter()]
    current, best = phases[0], phases[0]
    look(0)
    for n in numbers:
        current = phases[n % 2]
        current.update(n)
        best = current if n == 2 else best
        look(n)
    return [meter.all for meter in (*phases, current, best)], phases.index(current), best is phases[0]


@script
def what_is_made_late_and_written_again(look: Look, numbers: Numbers) -> Any:
    holder = Meter()
    look(0)
    for n in numbers:
        if not hasattr(holder, "average"):
            holder.average = torch.zeros(40_000)  # type: ignore[attr-defined]
        holder.average += n  # type: ignore[attr-defined]
        look(n)
    return OrderedDict(average=holder.average[0].item())  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def nothing_else_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covered, "_trainers", [])


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_what_cannot_be_saved_is_named_while_training_runs() -> None:
    mine, held = Variables(), np.array([0, None])
    count = 0
    mine.begin()
    count += 1
    held[0] = count
    mine.save()
    assert [word for word in mine.written() if word.startswith("test_what")] == [
        "test_what_cannot_be_saved_is_named_while_training_runs().held (ndarray)"
    ]
