"""A process tells where its threads are, whatever they do."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path

import pytest

from tests.agent.processes import asynchronous, descriptors, start, state

BEGIN = """if True:
    import ctypes, os, sys, threading, time
    from ff_core.contract import stacks
    stacks.answer()
    def waits_here(path):
        open(path, "w").close()
        {what}
    waits_here({path!r})
"""

#: A mutex that is taken twice, in a library that does not give Python's lock back meanwhile.
KEEPS_THE_LOCK = "mutex = bytes(64); [ctypes.PyDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]"


@pytest.mark.parametrize(
    ("what", "stop"),
    [("time.sleep(1000)", False), ("time.sleep(1000)", True), (KEEPS_THE_LOCK, False),
     ("threading.Event().wait()", False), ("\n        while True: pass", False)],
)  # fmt: skip
def test_all_stacks_are_told(what: str, stop: bool, tmp_path: Path) -> None:
    async def run() -> None:
        there = tmp_path / "there"
        worker = await start(BEGIN.format(what=what, path=str(there)))
        while not there.exists():
            await asyncio.sleep(0.02)
        if stop:
            os.kill(worker.pid, signal.SIGSTOP)
            assert "does not answer" in await worker.stacks(let_go=False)
        for _ in range(2):
            text = await worker.stacks(let_go=stop)
            assert text.count("in waits_here") >= 1 and "0x" not in text, text
        assert worker.returncode is None and state(worker.pid) in "RS"
        worker.kill_group(signal.SIGKILL)
        await worker.wait()
        assert await worker.stacks(let_go=True) == "it has ended"

    asyncio.run(run())


@asynchronous
async def test_a_program_without_a_handler_goes_on() -> None:
    """The signal would end it."""
    worker = await start("print('up', flush=True); import time; time.sleep(1000)")
    await asyncio.sleep(0.3)
    text = await worker.stacks(let_go=True)
    assert text.startswith("no stacks: it has no handler") and "(S) in" in text
    assert worker.returncode is None
    worker.kill_group(signal.SIGKILL)
    await worker.wait()


@asynchronous
async def test_nothing_stays_open() -> None:
    gc.collect()  # what tests before have left
    before = descriptors()
    for _ in range(3):
        worker = await start("pass")
        await worker.wait()
        await worker.drained()
        worker.close()
    assert descriptors() <= before
