"""device_stress.cpp under AddressSanitizer and ThreadSanitizer, on the stand-in for the CUDA driver."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ff_core.csrc import build
from tests.csrc.programs import build_program, build_standin

STRESS = Path(__file__).with_name("device_stress.cpp")


@pytest.fixture(scope="session", params=["address", "thread"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the program, with the stand-in beside it, both built with one sanitizer."""
    directory = tmp_path_factory.mktemp(f"device-{request.param}")
    library = build_standin(directory, request.param) / "libcuda.so.1"
    return build_program("stress", [*build.sources(), STRESS], directory, request.param, (library,))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", ["1", pytest.param("2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", ["steady", "cancel", "paced"])
def test_device_stress(program: list[str], scenario: str, seed: str) -> None:
    environment = {
        **os.environ,
        "TSAN_OPTIONS": "halt_on_error=1",
        "ASAN_OPTIONS": "detect_leaks=1",
        "LD_LIBRARY_PATH": str(Path(program[-1]).parent),
    }
    done = subprocess.run([*program, seed, scenario], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-8000:]}"
    assert f"{scenario} ok" in done.stdout
