"""The folder that a script has gone to, and where it looks for modules; handlers of signals, rights of new files."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ff_core.errors import DifferenceError
from ff_core.state import covered
from ff_core.state.process_wide import OfProcess, OfSignals
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


def on_signal(number: int, frame: Any) -> None:
    pass


def decides_about_signals_and_files(look: Look, numbers: Numbers) -> Any:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o022)
    seen: list[Any] = []
    look(0)
    for n in numbers:
        seen.append(as_it_is())
        if n == 2:
            signal.signal(signal.SIGUSR2, on_signal)
            os.umask(0o027)
        if n == 4:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            signal.signal(signal.SIGINT, on_signal)
            os.umask(0o077)
        look(n)
    return seen, as_it_is()


def as_it_is() -> list[str]:
    mask = os.umask(0o022)
    os.umask(mask)
    handlers = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGINT)]
    return [oct(mask), *(getattr(handler, "__name__", str(handler)) for handler in handlers)]


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    before, mask = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGINT)}, os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_as_before")
def test_signals_and_rights_of_a_replacement() -> None:
    assert replaced(decides_about_signals_and_files) == ([], right(decides_about_signals_and_files))


@pytest.mark.usefixtures("signals_as_before")
def test_signals_and_rights_where_an_iteration_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(decides_about_signals_and_files, monkeypatch) == ([], right(decides_about_signals_and_files))


@pytest.mark.usefixtures("signals_as_before")
def test_a_handler_that_nobody_finds_by_name_is_refused_by_the_signals_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(look: Look, numbers: Numbers) -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        look(0)
        for n in numbers:
            signal.signal(signal.SIGUSR2, lambda *_: None)
            look(n)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)

    monkeypatch.setattr(script, "__name__", "signal.SIGUSR2")
    assert replaced(script)[0] == ["signal.SIGUSR2 (function: it cannot be saved)"]


def test_other_threads_decide_about_no_signal() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(OfSignals().values({})))
    thread.start()
    thread.join()
    assert found == [{}] and "SIGUSR2" in OfSignals().values({})
