"""The engine under AddressSanitizer and ThreadSanitizer: stress*.cpp linked with the engine's own sources."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ff_core.csrc import build

STRESS = sorted(Path(__file__).parent.glob("stress*.cpp"))
SCENARIOS = ("steady", "cancel", "unplug", "malformed", "send_slot", "gate", "fuzz")


@pytest.fixture(scope="session", params=["address", "thread"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the stress program built with one sanitizer."""
    directory = tmp_path_factory.mktemp(request.param)
    objects = build.compile_objects([*build.sources(), *STRESS], directory, request.param)
    path = build.link(objects, directory / "stress", request.param, shared=False)
    # ThreadSanitizer of older compilers cannot live with the address randomisation of newer kernels.
    setarch = shutil.which("setarch")
    return [setarch, "-R", str(path)] if setarch and request.param == "thread" else [str(path)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stress(program: list[str], scenario: str) -> None:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
    for seed in ("1", "2"):
        done = subprocess.run([*program, seed, scenario], capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, f"seed {seed}:\n{done.stdout}\n{done.stderr[-8000:]}"
        assert f"{scenario} ok" in done.stdout
