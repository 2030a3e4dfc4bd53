"""What is installed for `make test MEGATRON=...`: beside the environment, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import other_megatron  # noqa: E402


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, codes: list[int]) -> tuple[int, list[list[str]]]:
    """Its exit code and pip's command lines; pip leaves a file in the folder and ends with one of `codes`."""
    called: list[list[str]] = []

    def pip(command: list[str], check: bool) -> Any:
        called.append(command)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "megatron").write_text("")
        return subprocess.CompletedProcess(command, codes[len(called) - 1])

    monkeypatch.setattr(other_megatron.subprocess, "run", pip)
    monkeypatch.setattr(other_megatron.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["other_megatron.py", "0.19.2", str(folder)])
    return other_megatron.main(), called


def test_the_version_and_triton_go_into_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "old").write_text("")
    code, called = run(monkeypatch, folder, [0, 0])
    assert code == 0 and (folder / "megatron").exists() and not (folder / "old").exists()
    assert [command[-1] for command in called] == ["megatron-core==0.19.2", "triton"]
    for command in called:
        assert command[:4] == [sys.executable, "-m", "pip", "install"] and "--no-deps" in command
        assert command[command.index("--target") + 1] == str(folder)


def test_half_an_installation_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    code, called = run(monkeypatch, folder, [0, 1])
    assert (code, len(called)) == (1, 2) and not folder.exists()


def test_another_name_would_make_it_a_part_of_the_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path / "packages", [])
    assert ended.value.code == 2
    assert "packages; allowed: a folder called site-packages" in capsys.readouterr().err
