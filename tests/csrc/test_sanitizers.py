"""The engine under AddressSanitizer and ThreadSanitizer: stress*.cpp linked with the engine's own sources."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ff_core.csrc import build
from tests.copy.rig import UCX
from tests.csrc.programs import build_program

STRESS = sorted(Path(__file__).parent.glob("stress*.cpp"))
SCENARIOS = ("steady", "cancel", "unplug", "malformed", "send_slot", "gate", "fuzz", "streams_unplug", "streams_fuzz")
UCX_SCENARIOS = ("ucx_steady", "ucx_cancel", "ucx_unplug", "ucx_fuzz", "ucx_send_slot", "ucx_flood")
_SUPPRESSIONS = Path(__file__).with_name("tsan_ucx.supp")


@pytest.fixture(scope="session", params=["address", "thread"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the stress program built with one sanitizer."""
    return build_program("stress", [*build.sources(), *STRESS], tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", ["1", pytest.param("2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stress(program: list[str], scenario: str, seed: str) -> None:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run([*program, seed, scenario], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-8000:]}"
    assert f"{scenario} ok" in done.stdout


@UCX
@pytest.mark.timeout(900)
@pytest.mark.parametrize("network", ["tcp", pytest.param("posix", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", UCX_SCENARIOS)
def test_stress_through_ucx(program: list[str], scenario: str, network: str) -> None:
    """Over UCX's TCP and shared memory."""
    environment = {
        **os.environ,
        "UCX_TLS": network,
        "UCX_POSIX_ERROR_HANDLING": "y",  # off by default: then it is not used where failures must be told
        # UCX patches madvise(2), which the C library calls when a thread has ended, as a sanitizer sees it.
        "UCX_MEM_EVENTS": "n",
        "TSAN_OPTIONS": f"halt_on_error=1 suppressions={_SUPPRESSIONS}",
        "ASAN_OPTIONS": "detect_leaks=0",  # connections that never came about are kept, see UcxPort::dispose
    }
    done = subprocess.run([*program, "1", scenario], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-8000:]}"
    assert f"{scenario} ok" in done.stdout
