"""Modules that a script imports while it trains. The form of a script: `tests.state.kinds`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.state.kinds import Look, Numbers, Scripts

SCRIPTS = script = Scripts()


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


@pytest.fixture(autouse=True)
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comes_late.py").write_text("TOTAL = 0\nHISTORY = []\n")
    (tmp_path / "late_classes.py").write_text("class Meter:\n    total = made = 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


test_a_replacement_goes_on_with_them, test_a_survivor_repeats_an_iteration_with_them = SCRIPTS.tests()
