"""Processes that only supervise start without torch: it costs seconds and hundreds of megabytes each."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["ff_core.agent.agent_main", "ff_core.launch.cli", "ff_core.agent.process"])
def test_without_torch(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'deepspeed', 'megatron'}} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout == "[]\n", process.stderr
