"""Whether a process that makes no progress does anything."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.agent.processes import asynchronous, start

CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
WRITES = """if True:
    import time
    with open({path!r}, "wb") as file:
        while True:
            file.write(bytes(8192))
            file.flush()
            time.sleep(0.2)
"""


async def still_after(code: str, seconds: float = 2.5) -> float:
    """How long the process has done nothing, `seconds` after its begin is over."""
    worker = await start(f"print('up', flush=True)\n{code}")
    try:
        await asyncio.sleep(0.7)  # it is through with its imports
        worker.still(moved=True)
        found = 0.0
        for _ in range(int(seconds / 0.25)):
            found, stopped = worker.still(moved=False)
            assert not stopped
            await asyncio.sleep(0.25)
        return found
    finally:
        worker.kill_group(signal.SIGKILL)
        await worker.wait()


@pytest.mark.parametrize(
    "code",
    ["import time; time.sleep(1000)", "import threading; a = threading.Lock(); a.acquire(); a.acquire()",
     "import ctypes; mutex = bytes(64); [ctypes.PyDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]"],
)  # fmt: skip
def test_who_waits_does_nothing(code: str) -> None:
    async def run() -> None:
        assert await still_after(code) > 1.5

    asyncio.run(run())


def test_who_computes_writes_or_has_children_that_do_is_at_work(tmp_path: Path) -> None:
    async def run() -> None:
        codes = ["while True: pass", CHILD, WRITES.format(path=str(tmp_path / "file"))]
        assert max(await asyncio.gather(*map(still_after, codes))) < 1.0

    asyncio.run(run())


@asynchronous
async def test_a_stopped_process_and_one_that_has_ended() -> None:
    worker = await start("import time; time.sleep(1000)")
    os.kill(worker.pid, signal.SIGSTOP)
    while not worker.still(moved=False)[1]:
        await asyncio.sleep(0.05)
    assert worker.still(moved=True) == (0.0, True)
    worker.kill_group(signal.SIGKILL)
    await worker.wait()
    worker.close()
    assert worker.still(moved=False) == (0.0, False)
