"""The folder that a script has gone to, and where it looks for modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ff_core.errors import DifferenceError
from ff_core.state import covered
from ff_core.state.process_wide import OfProcess
from tests.state.kinds import Look, Numbers, repeated, replaced, right


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(covered, "_trainers", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = Path.cwd()
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    os.chdir(tmp_path / "first")
    yield
    os.chdir(before)


def goes(look: Look, numbers: Numbers) -> Any:
    """Relative paths: a folder for each phase."""
    os.chdir("../first")
    sys.path[:] = [entry for entry in sys.path if not entry.startswith("added")]
    look(0)
    written = []
    for n in numbers:
        if n in (2, 4):
            os.chdir("../second" if n == 2 else "../third")
            sys.path.append(f"added in {n}")
        look(n)
    written.append((Path.cwd().name, [entry for entry in sys.path if entry.startswith("added")]))
    return written


def test_a_replacement_goes_on_there() -> None:
    assert replaced(goes) == ([], right(goes))


def test_a_survivor_repeats_an_iteration_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(goes, monkeypatch) == ([], right(goes))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DifferenceError, match=r"gone to the folder .*nowhere while it trained.*absolute paths"):
        OfProcess().write({}, {"folder": str(tmp_path / "nowhere")})


def test_a_folder_that_was_deleted_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "first").rmdir()
    assert OfProcess().values({}) == {"path": tuple(sys.path)}
