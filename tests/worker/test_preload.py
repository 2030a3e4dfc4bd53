"""What a live rank publishes and what a spare does with it, in interpreters of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ff_core.state import frames
from ff_core.worker import preload


def run_script(directory: Path, files: dict[str, str], *argv: str) -> str:
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(textwrap.dedent(text))
    process = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=60, cwd=directory, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


LISTING = "import json as j; from ff_core.worker.preload import library_modules; print(j.dumps(library_modules()))"


def test_libraries_only_in_import_order(tmp_path: Path) -> None:
    files = {"train.py": f"import helper, mine, msgpack, wave\n{LISTING}", "helper.py": "", "mine/__init__.py": ""}
    names = json.loads(run_script(tmp_path, files, "train.py"))
    assert {"msgpack", "wave", "ff_core.worker.preload"} <= set(names)
    assert not {"helper", "mine", "__main__", "sys"} & set(names)
    assert names.index("msgpack") < names.index("wave")


def test_package_of_the_running_module_is_the_users(tmp_path: Path) -> None:
    files = {"mine/__init__.py": "", "mine/train.py": f"import msgpack\n{LISTING}"}
    names = json.loads(run_script(tmp_path, files, "-m", "mine.train"))
    assert "msgpack" in names and not [name for name in names if name.startswith("mine")]


def test_what_was_published_can_be_imported_elsewhere(tmp_path: Path) -> None:
    code = """
        import asyncio, msgpack, email.mime.text, json
        from ff_core.worker import preload
        print(json.dumps(preload.library_modules()))
    """
    names = json.loads(run_script(tmp_path, {"live.py": code}, "live.py"))
    spare = f"""
        import json, sys
        from ff_core.worker import preload
        result = preload.run({names!r}, [["json:dumps", [1]], ["json:loads", ["no"]], ["nowhere:f", []]])
        missing = [name for name in {names!r} if name not in sys.modules]
        print(json.dumps([result.imported, result.called, sorted(result.skipped), missing, result.seconds]))
    """
    imported, called, skipped, missing, seconds = json.loads(run_script(tmp_path, {"spare.py": spare}, "spare.py"))
    assert imported == len(names) and called == 1 and missing == [] and seconds > 0
    assert skipped == ["json:loads", "nowhere:f"]


def test_modules_that_fail_alone_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quits_on_import.py").write_text("raise SystemExit(3)")
    (tmp_path / "fails_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    result = preload.run(["quits_on_import", "json", "fails_on_import", "no_such_module_here"], [])
    assert result.imported == 1
    assert result.skipped["fails_on_import"] == "ZeroDivisionError: division by zero"
    assert set(result.skipped) == {"quits_on_import", "fails_on_import", "no_such_module_here"}


def test_whose_modules_are_is_known_ahead() -> None:
    """A newcomer asks for each of thousands, several times."""
    frames.is_users.cache_clear()
    preload.run([], [])
    known = frames.is_users.cache_info().misses
    frames.users_modules()
    assert known > 0 and frames.is_users.cache_info().misses == known
