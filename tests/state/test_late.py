"""Modules that a script imports while it trains. The form of a script: `tests.state.kinds`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ff_core.state import codec
from ff_core.state.variables import Variables
from tests.state.kinds import Look, Numbers, Scripts

SCRIPTS = script = Scripts()
FUNCTIONS = """
import dataclasses, functools, math, re, typing
HELD = []
put, root, word, joined = HELD.append, math.sqrt, re.compile("a").match, functools.partial(", ".join)
class Pair(typing.NamedTuple):
    one: int = 1
    two: typing.Any = None
@dataclasses.dataclass
class Row:
    cells: list = dataclasses.field(default_factory=list)
    name: str = "x"
def tick(): pass
tick.calls = 0
def make():
    number = 0
    def count():
        nonlocal number
        number += 1
        return number
    return count
counted = make()
def held(of=HELD): return list(of)
class Keeps:
    def all(self, n, *, kept=[]):
        kept.append(n)
        return list(kept)
"""


@script
def a_module_that_comes_late(look: Look, numbers: Numbers) -> Any:
    sys.modules.pop("comes_late", None)
    seen: list[Any] = []
    look(0)
    for n in numbers:
        if n >= 2:
            import comes_late  # type: ignore[import-not-found]

            comes_late.TOTAL += n
            comes_late.HISTORY.append(n)
            seen.append((comes_late.TOTAL, list(comes_late.HISTORY)))
            del comes_late
        look(n)
    return seen


@script
def classes_that_come_late(look: Look, numbers: Numbers) -> Any:
    """Their module has no variables."""
    sys.modules.pop("late_classes", None)
    meter: Any = None
    seen: list[Any] = []
    look(0)
    for n in numbers:
        from late_classes import Meter  # type: ignore[import-not-found]

        meter = meter or Meter()
        meter.total += n
        Meter.made += n
        seen.append((isinstance(meter, Meter), meter.total, Meter.made))
        look(n)
    return seen


@script
def functions_that_come_late(look: Look, numbers: Numbers) -> Any:
    """With an attribute, a number that is bound, a list that is a default and has a name, too; a method's list."""
    sys.modules.pop("late_functions", None)
    seen: list[Any] = []
    look(0)
    for n in numbers:
        import late_functions as late  # type: ignore[import-not-found]

        late.tick.calls += n
        late.put(n)
        seen.append((late.tick.calls, late.counted(), late.held(), late.Keeps().all(n)))
        del late
        look(n)
    return seen


@pytest.fixture(autouse=True)
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comes_late.py").write_text("TOTAL = 0\nHISTORY = []\n")
    (tmp_path / "late_classes.py").write_text("class Meter:\n    total = made = 0\n")
    (tmp_path / "late_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()


def test_all_that_such_modules_have_can_be_put_back() -> None:
    """Also what Python itself has made of a NamedTuple's class and a data class, and what is bound to a list."""
    saved: dict[str, Any] = {}
    lost: list[str] = []

    def look(at: int) -> None:
        mine = Variables()
        mine.begin()
        if at == 0:
            import late_functions

            assert late_functions.root(4) == 2
            saved.update(mine.save())
        else:
            lost.extend(mine.load(codec.decode(codec.encode(saved)), repeats=True)[0])

    for at in range(2):
        sys.modules.pop("late_functions", None)
        look(at)
    assert saved["modules"] == ["late_functions"]
    assert [name for name in lost if name.startswith("imported ")] == []
