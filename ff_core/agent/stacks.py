"""What the threads of a worker process do: see ff_core.contract.stacks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path

from ff_core.contract.stacks import SIGNAL

_WAIT_S = 1.0  # a process that does not answer by then never will
_POLL_S = 0.01
_MOST = 16_000  # characters
_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ ?")


class Stacks:
    """Of one process, which inherits `fd`: a file in memory."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ff-stacks", os.MFD_CLOEXEC)

    async def ask(self, pid: int, *, let_go: bool) -> str:
        """The Python stacks of all threads of process `pid`, the oldest thread and the newest call first; or why there
        are none, and in which functions of the kernel its threads wait.

        let_go: if it is stopped it goes on, for only then it can answer. It is about to be killed.
        """
        before = os.fstat(self.fd).st_size
        try:
            if not _answers(pid):
                return _waits(pid, "it has no handler for the signal that asks for stacks")
            os.kill(pid, SIGNAL)
            if let_go:
                os.kill(pid, signal.SIGCONT)
        except OSError:
            return "it has ended"
        deadline, size = time.monotonic() + _WAIT_S, before
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            now = os.fstat(self.fd).st_size
            if now == size > before:  # nothing more has come
                break
            size = now
        text = os.pread(self.fd, _MOST, before).decode(errors="replace")
        threads = _THREAD.sub(r"\1 ", text).strip().split("\n\n")
        return "\n\n".join(reversed(threads)) or _waits(pid, "it does not answer")

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def _answers(pid: int) -> bool:
    """Whether the process catches SIGNAL, which would end it otherwise."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (SIGNAL - 1) & 1)
    return False


def _waits(pid: int, why: str) -> str:
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        with contextlib.suppress(OSError):  # it has ended
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            found.append(f"{name} ({rest.split()[0]}) in {(task / 'wchan').read_text() or '?'}")
    return "\n".join([f"no stacks: {why}. Its threads:", *found])[:_MOST]
