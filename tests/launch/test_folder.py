"""Who has a persist_dir."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ff_core.errors import ConfigError
from ff_core.launch import folder


def never(reason: str) -> None:
    raise AssertionError(reason)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BEAT_S", "_LOOK_S"):
        monkeypatch.setattr(folder, name, 0.01)


def left(directory: Path, **fields: Any) -> Path:
    """A file of somebody who is on another machine."""
    path = directory / folder.NAME
    path.write_text(json.dumps({**folder._me(), "id": "other", "host": "h9", "machine": ["elsewhere", ""], **fields}))
    return path


def beats(path: Path, over: threading.Event) -> None:
    """Somebody lives, on another machine."""
    mine = json.loads(path.read_text())
    while not over.wait(0.01):
        mine["beat"] += 1
        new = path.with_suffix(".new")
        new.write_text(json.dumps(mine))
        new.replace(path)


def test_nothing_is_held_without_a_folder() -> None:
    with folder.held("", never):
        pass


def test_a_second_job_on_the_machine_is_refused_and_the_file_goes_at_the_end(tmp_path: Path) -> None:
    with folder.held(str(tmp_path), never):
        with pytest.raises(ConfigError, match=rf"runs now: its launcher is process {os.getpid()} on"):
            with folder.held(str(tmp_path), never):
                pass
        assert (tmp_path / folder.NAME).exists()
    assert list(tmp_path.iterdir()) == []
    with folder.held(str(tmp_path), never):
        pass


def test_a_killed_launcher_of_this_machine_leaves_nothing_to_wait_for(tmp_path: Path) -> None:
    code = "import os, sys\nfrom ff_core.launch import folder\nwith folder.held(sys.argv[1], print):\n    os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / folder.NAME).exists()
    with folder.held(str(tmp_path), never):
        assert json.loads((tmp_path / folder.NAME).read_text())["pid"] == os.getpid()


def test_another_machines_job_lives_as_long_as_its_file_changes(tmp_path: Path) -> None:
    path, over = left(tmp_path), threading.Event()
    living = threading.Thread(target=beats, args=(path, over))
    living.start()
    try:
        with pytest.raises(ConfigError, match=r"on h9\. Two jobs would write"), folder.held(str(tmp_path), never):
            pass
    finally:
        over.set()
        living.join()


def test_another_machines_file_that_stays_as_it_is_counts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "_STALE_S", 0.1)
    left(tmp_path)
    with folder.held(str(tmp_path), never):
        assert "waiting up to 0.1 s to see whether that job still runs" in capsys.readouterr().err
    (tmp_path / folder.NAME).write_text('{"id": "o')  # torn
    with folder.held(str(tmp_path), never):
        pass


def test_who_stood_still_too_long_hears_that_another_has_it(tmp_path: Path) -> None:
    heard: list[str] = []
    said = threading.Event()

    def lost(reason: str) -> None:
        heard.append(reason)
        said.set()

    with folder.held(str(tmp_path), lost):
        new = left(tmp_path / ".." / tmp_path.name)
        assert said.wait(60)
    assert len(heard) == 1 and "on h9, has taken persist_dir" in heard[0]
    assert json.loads(new.read_text())["id"] == "other"  # it is the other's


def test_a_machine_is_not_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another container on the same machine counts processes of its own."""
    mine = folder._me()
    inner = {**mine, "machine": [mine["machine"][0], "pid:[1]"]}
    assert folder._lives_here(inner, mine) is None and folder._lives_here(mine, mine) is True
    assert folder._lives_here({**mine, "began": 1.0}, mine) is False  # its number was given to another process


def test_a_job_that_goes_on_elsewhere_keeps_its_folder(tmp_path: Path) -> None:
    """The next controller's launcher does not ask whether the one before lives: it is proven dead."""
    path = left(tmp_path, machine=folder._me()["machine"])  # of a process that seems to live
    with folder.held(str(tmp_path), never, anyway=True):
        assert json.loads(path.read_text())["id"] != "other"
        with pytest.raises(ConfigError, match="belongs to a job that runs now"), folder.held(str(tmp_path), never):
            pass
    assert not path.exists()
