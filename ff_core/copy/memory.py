"""Memory files: anonymous, really allocated, shared between processes by descriptor, of huge pages if there are any."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from pathlib import Path

from ff_core.copy.binding import check, engine

PAGE = mmap.PAGESIZE
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Memory that can still be had: what the machine has available, or less where a cgroup (v2 or v1) sets a limit."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    return min([available, *_cgroup_free()])


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _own_groups() -> list[tuple[str, str]]:
    """This process's (controllers, path) in each cgroup hierarchy; no controllers: version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    return [(controllers, path) for _, controllers, path in (line.split(":", 2) for line in lines)]


def _cgroup_free() -> list[int]:
    """Free bytes under every limit that applies to this process: its own cgroup's and its ancestors'."""
    found = []
    for controllers, path in _own_groups():
        if controllers == "":
            root, names = _CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = _CGROUP / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        directory = root / path.lstrip("/")
        for group in (directory, *directory.parents):
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None:
                found.append(max(0, limit - used + _reclaimable(group / "memory.stat", names[2])))
            if group == root:
                break
    return found


def _reclaimable(stat: Path, name: str) -> int:
    """Page cache that the kernel gives back before it refuses memory."""
    try:
        for line in stat.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except OSError:
        pass
    return 0


def allocate(name: str, size: int) -> int:
    """A memfd of `size` bytes whose pages exist: later use cannot fail for lack of memory. Returns the descriptor
    (close-on-exec).

    Raises MemoryError with the bytes needed and free.
    """
    free = free_bytes()
    if size > free:
        raise MemoryError(f"{name}: {size} bytes needed, {free} bytes free")
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        check(engine().ff_memory_huge(fd, size, ctypes.byref(ctypes.c_uint64())))
        os.posix_fallocate(fd, 0, size)
        # Nobody who gets the descriptor can shrink the file under the others' mappings (SIGBUS).
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        os.close(fd)
        raise MemoryError(f"{name}: {size} bytes needed, {free_bytes()} bytes free ({error.strerror})") from error
    return fd


class Mapping:
    """A shared read-write mapping of a memfd, with its address for the engine."""

    def __init__(self, fd: int, size: int) -> None:
        base = ctypes.c_void_p()
        check(engine().ff_memory_map(fd, size, ctypes.byref(base)))
        self.address: int = base.value or 0
        self.size = size

    def content(self) -> memoryview:
        """All of it, writable. Invalid once it is unmapped."""
        return memoryview((ctypes.c_ubyte * self.size).from_address(self.address)).cast("B")

    def close(self) -> None:
        """Unmap. Nobody may use the address any more. Idempotent."""
        if self.address:
            check(engine().ff_memory_unmap(self.address, self.size))
        self.address = 0
