"""The engine's own declarations of UCX against the headers of the UCX that is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ff_core.csrc import build

HEADERS = Path("/usr/include/ucp/api/ucp.h")


@pytest.mark.skipif(not HEADERS.exists(), reason="UCX's headers are not installed (Debian: libucx-dev)")
def test_declarations_match_the_headers() -> None:
    check = Path(__file__).with_name("ucx_abi_check.cpp")
    command = [*build.compiler(), "-std=c++17", "-fsyntax-only", f"-I{build.SOURCE_DIR}", str(check)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
