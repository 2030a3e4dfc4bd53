"""What is installed for `make test DEEPSPEED=...`: beside the environment, compiled, whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import other_deepspeed  # noqa: E402
from setup_env import Meanwhile  # noqa: E402


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *, compiles: bool = True) -> tuple[int, list[Any]]:
    """Its exit code; pip's command line and environment, and PYTHONPATH of the compilation."""
    called: list[Any] = []

    def pip(command: list[str], check: bool, env: dict[str, str]) -> None:
        called.append((command, env))
        stages = folder / "deepspeed" / "runtime" / "zero"
        stages.mkdir(parents=True)
        (stages / "stage_1_and_2.py").write_text("bit16_groups_flat.append(flattened_buffer)\n")

    def operators(python: Path, meanwhile: Meanwhile) -> None:
        called.append(os.environ["PYTHONPATH"])
        meanwhile.start("operator", [python, "-c", f"exit({int(not compiles)})"], {**os.environ})

    monkeypatch.setenv("PYTHONPATH", "of make")
    monkeypatch.setattr(other_deepspeed.subprocess, "run", pip)
    monkeypatch.setattr(other_deepspeed, "compile_operators", operators)
    monkeypatch.setattr(sys, "argv", ["other_deepspeed.py", "0.18.9", str(folder)])
    return other_deepspeed.main(), called


def test_the_version_goes_into_the_folder_and_its_operators_are_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "old").write_text("")
    code, ((command, environment), path) = run(monkeypatch, folder)
    assert code == 0 and (folder / "deepspeed").exists() and not (folder / "old").exists()
    assert command[-1] == "deepspeed==0.18.9" and "--no-deps" in command
    assert command[command.index("--target") + 1] == str(folder)
    assert environment["DS_BUILD_OPS"] == "0" and "PYTHONPATH" not in environment
    assert path == str(folder)
    mended = folder / "deepspeed" / "runtime" / "zero" / "stage_1_and_2.py"
    assert mended.read_text() == "bit16_groups_flat.append(flattened_buffer.detach())\n"


def test_half_an_installation_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    code, _ = run(monkeypatch, folder, compiles=False)
    assert code == 1 and not folder.exists()


def test_another_name_would_make_it_a_part_of_the_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path / "packages")
    assert ended.value.code == 2
    assert "packages; allowed: a folder called site-packages" in capsys.readouterr().err
