"""Closing inner groups where nobody waits for it.

Whoever lets go of an inner group last waits for its threads, and a thread in a lost operation (see `waiting`) ends half
an hour later. So neither the training thread nor the watchdog may be that one.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any


class Closer:
    """Lets go of what it is given, in the background."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def close(self, groups: list[Any], wait_s: float = 0.0) -> None:
        """Empties `groups`. Callers must hold these groups by this very list alone: the thread may overtake them.

        wait_s: how long to wait for that.
        """
        if not groups:
            return
        thread = threading.Thread(target=groups.clear, name="ff-close", daemon=True)
        with self._lock:
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
            thread.start()
        if wait_s:
            thread.join(wait_s)

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
