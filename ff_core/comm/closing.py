"""Aborting and closing inner groups where nobody waits for it.

Whoever lets go of an inner group last waits for its threads, and a thread in a lost operation (see `waiting`) ends half
an hour later. So neither the training thread nor the watchdog may be that one.

An abort of NCCL returns after half a second. The kernels that it frees are over within milliseconds of its begin, and
new communicators can be made beside it. So nobody waits for its return either. Who needs an idle device waits for that.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

from . import nccl


class Closer:
    """Lets go of what it is given, in the background."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._aborts: list[threading.Thread] = []
        self._lock = threading.Lock()

    def close(self, groups: list[Any], wait_s: float = 0.0) -> None:
        """Empties `groups`. Callers must hold these groups by this very list alone: the thread may overtake them.

        wait_s: how long to wait for that.
        """
        thread = self._start(groups, groups.clear, "ff-close")
        if thread is not None and wait_s:
            thread.join(wait_s)

    def abort(self, groups: list[Any]) -> None:
        """Begins to abort the NCCL communicators of `groups`, all at the same time, and then does as close()."""

        def abort_and_close() -> None:
            try:
                nccl.abort(groups)
            finally:
                groups.clear()

        thread = self._start(groups, abort_and_close, "ff-abort")
        if thread is not None:
            with self._lock:
                self._aborts = [other for other in self._aborts if other.is_alive()] + [thread]

    def _start(self, groups: list[Any], work: Callable[[], None], name: str) -> threading.Thread | None:
        if not groups:
            return None
        thread = threading.Thread(target=work, name=name, daemon=True)
        with self._lock:
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
            thread.start()
        return thread

    def give_back(self) -> None:
        """Returns freed memory to the system, in the background. Every generation's threads leave glibc arenas with the
        buffers that they have freed: ten megabytes here and there, until there are eight arenas per core.
        """
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            threading.Thread(target=trim, args=(0,), name="ff-trim", daemon=True).start()

    def wait(self) -> None:
        """Returns when everything is closed."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def wait_aborted(self, timeout_s: float) -> None:
        """Returns when no abort is under way, or after timeout_s. An interpreter had better not end within one."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            threads = list(self._aborts)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
