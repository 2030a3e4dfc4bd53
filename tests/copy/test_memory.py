from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ff_core.copy import memory
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.binding import check, engine
from ff_core.errors import EngineError


def test_allocation_is_real() -> None:
    fd = memory.allocate("ff-test", 5 << 20)
    try:
        assert os.fstat(fd).st_blocks * 512 >= 5 << 20
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [4096, (2 << 20) - 4096, 2 << 20, (70 << 20) + 8192])
def test_huge_pages_change_nothing_but_speed(size: int) -> None:
    """As many as the kernel has at hand; every byte is there, zero, and shared either way."""
    huge = 2 << 20
    fd = os.memfd_create("ff-test", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        got = ctypes.c_uint64(1)
        check(engine().ff_memory_huge(fd, size, ctypes.byref(got)))
        assert got.value % huge == 0 and got.value <= size
        assert os.fstat(fd).st_blocks * 512 >= got.value
    finally:
        os.close(fd)
    fd = memory.allocate("ff-test", size)
    one, other = memory.Mapping(fd, size), memory.Mapping(fd, size)
    try:
        assert one.address % huge == other.address % huge == 0
        assert os.fstat(fd).st_blocks * 512 >= size
        assert ctypes.string_at(one.address, size) == bytes(size)
        ctypes.memset(one.address, 7, size)
        assert ctypes.string_at(other.address, size) == b"\x07" * size
    finally:
        one.close()
        one.close()  # idempotent
        other.close()
        os.close(fd)


def test_a_kernel_that_does_not_answer_is_not_waited_for() -> None:
    """Who asks for huge pages freezes, as it does where a processor never gets to what the kernel wants of it."""
    program = """
import os, signal, sys, threading, time
from ff_core.copy import memory
made = []
def allocate():
    made.append(os.fstat(memory.allocate("ff-test", 512 << 20)).st_blocks * 512)
thread = threading.Thread(target=allocate)
thread.start()
tasks = "/proc/self/task"
while not (found := [c for t in os.listdir(tasks) for c in open(f"{tasks}/{t}/children").read().split()]):
    pass
while len(held := os.listdir(f"/proc/{found[0]}/fd")) > 2:
    pass
os.kill(int(found[0]), signal.SIGSTOP)
thread.join(20)
os.fstat(memory.allocate("ff-test", 8 << 20))
print(made, len(held))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"[{512 << 20}] 2\n", done


def test_impossible_mappings_are_named() -> None:
    with pytest.raises(EngineError, match="mapping of 4096 bytes: Bad file descriptor"):
        memory.Mapping(1 << 20, 4096)
    with pytest.raises(EngineError, match="mapping of no bytes"):
        memory.Mapping(0, 0)


def test_lack_of_memory_fails_at_start_with_bytes() -> None:
    with pytest.raises(MemoryError, match=r"big: \d{15,} bytes needed, \d+ bytes free"):
        Arena.create(ArenaLayout(0, 1 << 46, chunk_bytes=1 << 20), name="big")


@pytest.mark.parametrize(
    ("controllers", "base", "names"),
    [
        ("", "", ("memory.max", "memory.current", "inactive_file")),
        ("cpu,memory", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_the_tightest_cgroup_limit_counts(
    controllers: str, base: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file tree plays /sys/fs/cgroup, versions 2 and 1; limits of the own group and of its parents apply."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_own_groups", lambda: [("cpu", "/x"), (controllers, "/job/task")])
    unlimited = memory.free_bytes()
    assert unlimited > 1 << 20
    task = tmp_path / base / "job" / "task"
    task.mkdir(parents=True)
    for group, limit in ((task, 1_000_000), (task.parent, 990_000)):
        (group / names[0]).write_text(f"{limit}\n")
        (group / names[1]).write_text("900000\n")
        (group / "memory.stat").write_text(f"anon 5\n{names[2]} 50000\n")
    assert memory.free_bytes() == 140_000
    (task.parent / names[0]).write_text("max\n")
    assert memory.free_bytes() == 150_000


def test_free_bytes_is_plausible() -> None:
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert 0 < memory.free_bytes() <= total
