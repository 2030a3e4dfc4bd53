"""Dying with one's parent: a launcher's death ends its agents, an agent's death ends its workers.

The kernel sends SIGKILL when the parent *thread* that made the process ends. So parents must start processes from a
thread that lives as long as they do: the main thread, or the event loop's.
"""

from __future__ import annotations

import ctypes
import os
import signal

PARENT_VARIABLE = "FF_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent named by FF_PARENT_PID dies; end at once if it is dead already.

    Does nothing when the variable is absent (the process was started by hand). The variable is removed, so that
    grandchildren do not mistake our parent for theirs. Raises OSError if the kernel refuses.
    """
    text = os.environ.pop(PARENT_VARIABLE, None)
    if text is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    # The parent may have died before the call above took effect.
    if os.getppid() != int(text):
        os.kill(os.getpid(), signal.SIGKILL)
