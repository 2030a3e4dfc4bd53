from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ff_core.csrc import build


def test_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("NVCC", "")  # takes seconds
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.build(tmp_path / "engine.so")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"g\+\+"):
        build.compiler()


def test_compiler_errors_are_shown(tmp_path: Path) -> None:
    bad = tmp_path / "bad.cpp"
    bad.write_text("int broken(;\n")
    with pytest.raises(build.BuildError, match=r"bad\.cpp"):
        build.compile_objects([bad], tmp_path)


def test_unknown_sanitizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory.*address, thread, undefined"):
        build.build(tmp_path / "engine.so", "memory")


def test_library_is_self_contained_and_plain_x86(tmp_path: Path) -> None:
    """No libstdc++, torch or CUDA among its needs; only the C interface visible; runs in a process without torch."""
    assert build.LIBRARY.exists()
    needs = subprocess.run(["readelf", "-d", str(build.LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needs
    for unwanted in ("libstdc++", "libtorch", "libcuda", "libpython"):
        assert unwanted not in needs
    symbols = subprocess.run(
        ["readelf", "--dyn-syms", "-W", str(build.LIBRARY)], capture_output=True, text=True, check=True
    )
    defined = [line.split()[-1] for line in symbols.stdout.splitlines() if " GLOBAL " in line and " UND " not in line]
    assert "ff_writer_open" in defined
    assert [name for name in defined if not name.startswith("ff_")] == []
    library = ctypes.CDLL(str(build.LIBRARY))
    library.ff_build_info.restype = ctypes.c_char_p
    info = json.loads(library.ff_build_info())
    assert info["crc32c"] in ("vpclmulqdq", "sse4.2", "portable")
    assert "tcp" in info["transports"]


def test_binding_needs_no_torch() -> None:
    code = (
        "import sys, ff_core.copy.writer, ff_core.copy.receiver, ff_core.copy.sender; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(build.__file__).parents[2])


def test_library_that_is_missing_says_what_to_run(tmp_path: Path) -> None:
    code = "from ff_core.copy.binding import engine; engine()"
    environment = {**os.environ, "FF_ENGINE_LIBRARY": str(tmp_path / "absent.so")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(build.__file__).parents[2],
    )
    assert done.returncode == 1
    assert "EngineError" in done.stderr and "python -m ff_core.csrc.build" in done.stderr
    (tmp_path / "absent.so").write_bytes(b"not a library")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(build.__file__).parents[2],
    )
    assert "cannot be used" in done.stderr


def test_library_of_other_sources_is_refused(tmp_path: Path) -> None:
    """As after an update of the sources without a build: functions may take other arguments."""
    other = tmp_path / "other.so"
    now = build.interface().encode()
    engine = build.LIBRARY.read_bytes()
    assert engine.count(now) == 1
    other.write_bytes(engine.replace(now, b"0" * len(now)))
    done = subprocess.run(
        [sys.executable, "-c", "from ff_core.copy.binding import engine; engine()"],
        capture_output=True,
        text=True,
        env={**os.environ, "FF_ENGINE_LIBRARY": str(other)},
        cwd=Path(build.__file__).parents[2],
    )
    assert done.returncode == 1
    assert "built from other sources" in done.stderr and "python -m ff_core.csrc.build" in done.stderr
