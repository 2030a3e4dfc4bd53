from __future__ import annotations

import subprocess
from pathlib import Path

from tests.csrc.programs import build_program


def test_pacer_on_an_invented_clock(tmp_path: Path) -> None:
    """Limit, evenness, yield, danger, and what is learned: pacer_check.cpp, which aborts at the first wrong one."""
    command = build_program("pacer_check", [Path(__file__).with_name("pacer_check.cpp")], tmp_path, "undefined")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("ok", "")
