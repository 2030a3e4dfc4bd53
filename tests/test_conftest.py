"""What tests/conftest.py does for all tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_test_that_is_given_more_time_is_not_ended_before(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_runtest_setup  # noqa: F401")
    (tmp_path / "test_it.py").write_text(
        "import time, pytest\n@pytest.mark.timeout(100)\ndef test_long(): time.sleep(2)\n"
    )
    options = ["-o", "faulthandler_timeout=1", "-o", "faulthandler_exit_on_timeout=true", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-q", *options, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
