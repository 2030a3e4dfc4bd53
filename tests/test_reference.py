"""References are made once for all that asks for the same, and again when something they depend on has changed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests import reference as kept


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that imports a module beside it inside a function."""
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "references")
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    (tmp_path / "model.py").write_text("SIZE = 1\n")
    path = tmp_path / "train.py"
    path.write_text("def main():\n    import torch\n    import model\n")
    return path


def make(folder: Path) -> None:
    (folder / "result").write_text("made")
    with open(folder.parents[1] / "made", "a") as file:
        file.write("x")


def times(tmp_path: Path) -> int:
    return len((tmp_path / "made").read_text())


def test_the_same_is_made_once(script: Path, tmp_path: Path) -> None:
    first = kept.reference(script, ["--steps", "3"], make)
    assert (first / "result").read_text() == "made"
    assert kept.reference(script, ["--steps", "3"], make) == first
    assert times(tmp_path) == 1
    assert kept.reference(script, ["--steps", "4"], make) != first
    assert times(tmp_path) == 2


@pytest.mark.parametrize("name", ["train.py", "model.py"])
def test_changed_sources_make_it_anew(script: Path, tmp_path: Path, name: str) -> None:
    first = kept.reference(script, [], make)
    with open(tmp_path / name, "a") as file:
        file.write("OTHER = 2\n")
    kept.sources.cache_clear()  # as in another run of the tests
    assert kept.reference(script, [], make) != first


def test_what_could_not_be_made_is_not_kept(script: Path, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "result").write_text("half")
        raise AssertionError("training failed")

    with pytest.raises(AssertionError, match="training failed"):
        kept.reference(script, [], fail)
    assert (kept.reference(script, [], make) / "result").read_text() == "made"


def test_others_wait_for_who_makes_it(script: Path, tmp_path: Path) -> None:
    """Threads stand for processes: the lock belongs to an open file, not to a process."""
    together = Barrier(4)

    def slowly(folder: Path) -> None:
        time.sleep(0.2)  # time for others to come in, if they could
        make(folder)

    def ask(_: int) -> Path:
        together.wait(60)
        return kept.reference(script, [], slowly)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert times(tmp_path) == 1
