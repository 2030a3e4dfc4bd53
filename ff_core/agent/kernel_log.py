"""What the kernel says of processes that end: killed for want of memory, an error of their GPU (NVIDIA's "Xid")."""

from __future__ import annotations

import contextlib
import os
import re
import weakref
from collections import deque
from pathlib import Path

_OF_INTEREST = re.compile(r"(?i)out of memory: killed process \d+|NVRM: Xid")
_MOST = 100  # lines that are kept
#: Where a memory cgroup counts the processes that were killed in it: cgroup v2, v1.
_COUNTERS = (("0", "/sys/fs/cgroup{}/memory.events"), ("memory", "/sys/fs/cgroup/memory{}/memory.oom_control"))


class KernelLog:
    """Of this node, from now on. Many systems let root only read it; then what this process's cgroup counts is all."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self._lines: deque[str] = deque(maxlen=_MOST)
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
            os.lseek(self._file, 0, os.SEEK_END)
        self._killed = _killed_in_cgroup()

    def of(self, pid: int, code: int) -> str:
        """About process `pid` of this node, which has ended with `code` (negative: the signal); empty if nothing is
        known. An error of a GPU is said of whichever process ends next: only the driver knows whose it was."""
        self._read()
        said = [line for line in self._lines if "Xid" in line or f"process {pid} " in line]
        for line in said:
            self._lines.remove(line)
        before, self._killed = self._killed, _killed_in_cgroup()
        if code == -9 and not said and self._killed > before:
            said = ["a process of its memory cgroup was killed: out of memory"]
        return "; ".join(said)

    def _read(self) -> None:
        while self._file >= 0:
            try:
                records = os.read(self._file, 8192)
            except BrokenPipeError:
                continue  # some were overwritten before they were read
            except OSError:
                return  # no more
            if not records:
                return
            for line in records.decode(errors="replace").splitlines():
                if _OF_INTEREST.search(line):
                    self._lines.append(line.partition(";")[2] or line)


def _killed_in_cgroup() -> int:
    """How many processes were killed in this process's memory cgroup for want of memory."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, group = line.split(":", 2)
            for kind, place in _COUNTERS:
                file = Path(place.format("" if group == "/" else group))
                if kind in (number, *controllers.split(",")) and file.is_file():
                    found = re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE)
                    if found:
                        return int(found.group(1))
    return 0
