"""Set-up: what it asks for, what it keeps, and that a killed compilation does not block the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import setup_env  # noqa: E402


def test_this_machine_has_everything() -> None:
    assert setup_env.missing_prerequisites() == []


def test_missing_things_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_env.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None)
    text = "\n".join(setup_env.missing_prerequisites())
    for package in ("g++", "python3-dev", "python3-venv"):
        assert f"apt-get install {package}" in text
    assert f"{tmp_path}/Python.h" in text


def test_compiler_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    (line,) = setup_env.missing_prerequisites()
    assert "no-such-compiler" in line


def test_exit_code_when_something_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/setup_env.py", "--venv", tmp_path / "venv"],
        env={**os.environ, "CXX": "no-such-compiler"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "lacks what the build needs" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_environment_is_kept_if_it_works_and_made_anew_if_not(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    python = setup_env.make_venv(venv)
    (venv / "kept").write_text("")
    assert setup_env.make_venv(venv) == python
    assert (venv / "kept").exists()
    python.unlink()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert setup_env.make_venv(venv) == python
    assert not (venv / "kept").exists()
    assert subprocess.run([python, "-c", "import pip"], check=False, timeout=60).returncode == 0


def test_constraints_of_the_tested_and_of_another_torch(tmp_path: Path) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"deepspeed=={setup_env.DEEPSPEED}" in lines
    assert setup_env.write_constraints(tmp_path, "2.13.0").read_text().splitlines() == lines
    other = setup_env.write_constraints(tmp_path, "2.9.0").read_text().splitlines()
    assert [line for line in other if line.startswith("torch==")] == ["torch==2.9.0"]
    assert f"deepspeed=={setup_env.DEEPSPEED}" in other


def test_default_torch_is_the_makefile_s_and_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text()
    default = makefile.split("TORCH_DEFAULT := ")[1].split()[0]
    assert f"torch=={default}" in (ROOT / "constraints.txt").read_text().splitlines()


def old_lock(directory: Path) -> Path:
    directory.mkdir(parents=True)
    lock = directory / "lock"
    lock.write_text("")
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    return lock


def test_locks_of_killed_compilations_are_removed_and_others_kept(tmp_path: Path) -> None:
    stale, held = old_lock(tmp_path / "cpu_adam"), old_lock(tmp_path / "deepspeed_shm_comm")
    compilation = subprocess.Popen([sys.executable, "-c", "input()"], cwd=held.parent, stdin=subprocess.PIPE)
    try:
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
        setup_env.clear_stale_locks(Path(sys.executable), environment)
        assert not stale.exists()
        assert held.exists()
    finally:
        compilation.kill()
        compilation.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu_adam", "deepspeed_shm_comm"]


def test_operators_are_compiled_quickly(tmp_path: Path) -> None:
    """Without what debuggers read, and with little optimisation, whatever torch asks for."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    compiler = setup_env.quick_compiler(tmp_path / "venv" / "bin" / "python") / "c++"
    (tmp_path / "one.cpp").write_text("int one() { return 1; }")
    for command, has in (("c++", True), (compiler, False)):
        subprocess.run([command, "-g", "-c", "one.cpp", "-o", "one.o"], cwd=tmp_path, check=True)
        assert (b".debug_info" in (tmp_path / "one.o").read_bytes()) == has
        asked = [command, "-O3", "-Q", "--help=optimizers"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert ("-finline-functions [enabled]" in " ".join(said.split())) == has


def test_what_is_compiled_meanwhile_ends_with_the_block(tmp_path: Path) -> None:
    with pytest.raises(KeyError), setup_env.Meanwhile() as meanwhile:
        meanwhile.start("slow", [sys.executable, "-c", "import time; time.sleep(600)"], {**os.environ})
        meanwhile.start("quick", [sys.executable, "-c", ""], {**os.environ})
        meanwhile.wait("quick")
        raise KeyError
    assert meanwhile.compiling["slow"][0].returncode == -signal.SIGKILL


def test_a_compilation_that_fails_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError), setup_env.Meanwhile() as meanwhile:
        meanwhile.start("wrong", [sys.executable, "-c", "exit('no such header')"], {**os.environ})
        meanwhile.wait_for_all()
    assert "no such header" in capfd.readouterr().err


def test_installed_version() -> None:
    assert setup_env.installed_version(Path(sys.executable), "torch").count(".") == 2
    assert setup_env.installed_version(Path(sys.executable), "no-such-package") == ""
