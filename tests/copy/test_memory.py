from __future__ import annotations

import os
from pathlib import Path

import pytest

from ff_core.copy import memory
from ff_core.copy.arena import Arena, ArenaLayout


def test_allocation_is_real() -> None:
    fd = memory.allocate("ff-test", 5 << 20)
    try:
        assert os.fstat(fd).st_blocks * 512 >= 5 << 20
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)
    finally:
        os.close(fd)


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
