from __future__ import annotations

import subprocess
from pathlib import Path

from tests.csrc.programs import build_program


def test_choice_of_streams_on_invented_speeds(tmp_path: Path) -> None:
    """What is chosen, when it is kept and when it is given up: stream_tuner_check.cpp, which aborts at the first wrong
    one."""
    command = build_program(
        "stream_tuner_check", [Path(__file__).with_name("stream_tuner_check.cpp")], tmp_path, "undefined"
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("ok", "")
