from __future__ import annotations

import subprocess
from pathlib import Path

from ff_core.csrc import build


def test_pacer_on_an_invented_clock(tmp_path: Path) -> None:
    """Limit, evenness, yield, danger, and what is learned: pacer_check.cpp, which aborts at the first wrong one."""
    objects = build.compile_objects([Path(__file__).with_name("pacer_check.cpp")], tmp_path, "undefined")
    program = build.link(objects, tmp_path / "pacer_check", "undefined", shared=False)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("ok", "")
