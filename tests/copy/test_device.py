"""The engine with tensors on a CUDA device: device_checks.py, on the stand-in for the driver, and on a GPU if there is
one."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.copy.device_checks import CHECKS
from tests.csrc.programs import build_standin

SCRIPT = Path(__file__).with_name("device_checks.py")
ON_ANY = sorted(set(CHECKS) - {"failing"})


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a libcuda.so.1 that is none."""
    return build_standin(tmp_path_factory.mktemp("standin"))


def run_check(name: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), name],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0 and done.stdout.strip() == "ok", done.stdout + done.stderr


@pytest.mark.parametrize("name", ON_ANY)
def test_on_the_standin(name: str, standin: Path) -> None:
    run_check(name, LD_LIBRARY_PATH=str(standin))


@pytest.mark.parametrize("call", ["cuMemcpyDtoHAsync_v2:5", "cuLaunchKernel:2", "cuEventSynchronize:1"])
def test_driver_errors(call: str, standin: Path) -> None:
    if call.startswith("cuLaunchKernel") and not has_kernel():
        pytest.skip("built without nvcc: there is no gather kernel whose launch could fail")
    run_check("failing", LD_LIBRARY_PATH=str(standin), FF_STANDIN_FAIL=call)


@pytest.mark.parametrize("name", ON_ANY)
def test_on_a_gpu(name: str) -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        pytest.skip(f"no CUDA driver on this machine: {error}")
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        pytest.skip("the CUDA driver is there, but it has no device")
    run_check(name)


def has_kernel() -> bool:
    import ff_core

    kernel: bool = ff_core.build_info()["cuda"]["gather_kernel"]
    return kernel
