"""device_stress.cpp under AddressSanitizer and ThreadSanitizer, on the stand-in for the CUDA driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ff_core.csrc import build
from tests.csrc.standin import SOURCE as STANDIN

STRESS = Path(__file__).with_name("device_stress.cpp")


@pytest.fixture(scope="session", params=["address", "thread"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the program, with the stand-in beside it, both built with one sanitizer."""
    directory = tmp_path_factory.mktemp(f"device-{request.param}")
    files = [*build.sources(), STRESS, STANDIN]
    objects = dict(zip(files, build.compile_objects(files, directory, request.param), strict=True))
    library = build.link([objects.pop(STANDIN)], directory / "libcuda.so.1", request.param)
    path = build.link([*objects.values(), library], directory / "stress", request.param, shared=False)
    # ThreadSanitizer of older compilers cannot live with the address randomisation of newer kernels.
    setarch = shutil.which("setarch")
    return [setarch, "-R", str(path)] if setarch and request.param == "thread" else [str(path)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", ["steady", "cancel", "paced"])
def test_device_stress(program: list[str], scenario: str) -> None:
    environment = {
        **os.environ,
        "TSAN_OPTIONS": "halt_on_error=1",
        "ASAN_OPTIONS": "detect_leaks=1",
        "LD_LIBRARY_PATH": str(Path(program[-1]).parent),
    }
    for seed in ("1", "2"):
        done = subprocess.run([*program, seed, scenario], capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, f"seed {seed}:\n{done.stdout}\n{done.stderr[-8000:]}"
        assert f"{scenario} ok" in done.stdout
