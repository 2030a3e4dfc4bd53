"""Starts real processes for tests, and waits for what they do."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ff_core.agent.process import WorkerProcess

DEADLINE_S = 60.0


async def start(
    code: str, *, rank: int | None = 0, log_dir: Path | None = None, show: bool = False, prefix: bool = True,
    pass_fds: tuple[int, ...] = (),
) -> WorkerProcess:  # fmt: skip
    return await WorkerProcess.spawn(
        [sys.executable, "-u", "-c", code], dict(os.environ), rank=rank, log_dir=log_dir, show=show, prefix=prefix,
        pass_fds=pass_fds,
    )  # fmt: skip


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)  # pytest reads the fixtures' names from it
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), DEADLINE_S))

    return run


async def until(condition: Callable[[], Any]) -> None:
    """The test's own deadline ends a wait for something that never happens."""
    while not condition():
        await asyncio.sleep(0.01)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def state(pid: int) -> str:
    """R, S, Z...; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
