"""Killing a process group so that nothing of it stays in the machine's shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

#: Words on the command lines of helpers that remove what killed processes leave in /dev/shm (named semaphores, shared
#: memory) and end by themselves when the last of these has gone: Python's and loky's resource tracker, torch's manager.
_CLEANERS = (b"resource_tracker import main", b"torch_shm_manager")


def kill(group: int) -> None:
    """SIGKILL for every process of `group` but those that clean up after the others. Nothing if there is none."""
    # Stopped first: none of them can start another one while they are looked for.
    if not _signal_group(group, signal.SIGSTOP):
        return
    cleaners = []
    for pid in members(group):
        if _is_cleaner(pid):
            cleaners.append(pid)
        else:
            # EPERM: it changed its user.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    for pid in cleaners:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGCONT)


def members(group: int) -> Iterator[int]:
    """Processes of `group`, zombies too."""
    for name in os.listdir("/proc"):  # noqa: PTH208 (thousands of them: no objects)
        if name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name) state parent group ...; the name may hold anything.
                if int(_read(f"/proc/{name}/stat").rpartition(b")")[2].split(None, 3)[2]) == group:
                    yield int(name)


def _is_cleaner(pid: int) -> bool:
    try:
        words = _read(f"/proc/{pid}/cmdline")
    except OSError:
        return False
    return any(cleaner in words for cleaner in _CLEANERS)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # a descendant changed its user; the others were signalled
    return True
