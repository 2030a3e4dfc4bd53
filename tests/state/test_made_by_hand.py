"""What a script has made and given attributes that few look for. The form of a script: `tests.state.kinds`."""

from __future__ import annotations

import importlib.util
import sys
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.state.kinds import Look, Numbers, Scripts, alone_with

SCRIPTS = script = Scripts()


class Phase(Enum):
    WARM, LONG = "warm", "long"


class Level(IntEnum):
    LOW, HIGH = 1, 2


class Count(int):
    """It writes itself alike, whatever it is."""

    def __repr__(self) -> str:
        return "a count"


class Rate(float):
    pass


class Name(str):
    pass


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone_with(monkeypatch, ModuleType("somelib"))


@script
def attributes_of_members_of_an_enum(look: Look, numbers: Numbers) -> Any:
    members: Any = (Phase.LONG, Level.HIGH)
    for member in members:
        member.steps, member.seen = 0, []
        vars(member).pop("late", None)
    look(0)
    for n in numbers:
        for member in members:
            member.steps += n
            member.seen.append(n)
            member.late = getattr(member, "late", 0) + n
        look(n)
    return [(member.steps, member.seen, member.late) for member in members]


@script
def attributes_of_numbers_and_texts(look: Look, numbers: Numbers) -> Any:
    count, rate, name = Count(3), Rate(0.5), Name("run")
    kept: Any = (count, rate, name)
    for each in kept:
        each.steps, each.seen = 0, []
    look(0)
    for n in numbers:
        for each in kept:
            each.steps += n
            each.seen.append(n)
        look(n)
    return [(each.steps, each.seen) for each in (count, rate, name)]  # type: ignore[attr-defined]


@script
def another_number_of_a_class(look: Look, numbers: Numbers) -> Any:
    best: Any = Count(0)
    best.at = 0
    look(0)
    for n in numbers:
        before, best = best, Count(int(best) + n)
        best.at = before.at + 2 * n
        look(n)
    return int(best), best.at


@script
def modules_made_by_hand(look: Look, numbers: Numbers) -> Any:
    settings: Any = ModuleType("settings")
    settings.rate, settings.seen, settings.inner = 1.0, [], ModuleType("inner")
    settings.inner.count = 0
    look(0)
    for n in numbers:
        settings.rate /= 1 + n
        settings.seen.append(n)
        settings.inner.count += n
        settings.late = getattr(settings, "late", 0) + n
        look(n)
    return settings.rate, settings.seen, settings.inner.count, settings.late


@script
def a_module_under_a_name_of_its_own(look: Look, numbers: Numbers) -> Any:
    settings: Any = ModuleType("made_by_hand")
    sys.modules["made_by_hand"] = settings
    settings.count = 0
    look(0)
    for n in numbers:
        settings.count += n
        look(n)
    return settings.count


@script
def a_module_from_a_file_that_nobody_can_import(look: Look, numbers: Numbers) -> Any:
    spec = importlib.util.spec_from_file_location("nowhere", Path(__file__).with_name("beside.txt"), loader=Empty())
    assert spec is not None
    settings: Any = importlib.util.module_from_spec(spec)
    settings.count = 0
    look(0)
    for n in numbers:
        settings.count += n
        look(n)
    return settings.count


class Empty:
    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        pass


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()
