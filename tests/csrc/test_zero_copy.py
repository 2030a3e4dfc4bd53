from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ff_core.csrc import build
from tests.csrc.programs import build_program


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sends_without_copying(tmp_path: Path, sanitizer: str) -> None:
    """Over loopback they are tried, found to be copied, and given up; completions are told by hand as well:
    zero_copy_check.cpp, which aborts at the first wrong one."""
    parts = {"tcp", "stream", "zero_copy", "error", "wire"}
    files = [file for file in build.sources() if file.stem in parts or file.parent.name == "checksum"]
    files.append(Path(__file__).with_name("zero_copy_check.cpp"))
    command = build_program("zero_copy_check", files, tmp_path, sanitizer)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr
