"""What the kernel says of a process that ends: from its log, and from the memory cgroup's counter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ff_core.agent import kernel_log
from ff_core.agent.kernel_log import KernelLog

OOM = "Memory cgroup out of memory: Killed process {} (python) total-vm:221384kB, anon-rss:50944kB"
XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
GROUPS = Path("/sys/fs/cgroup/memory")


def test_of_each_process_what_is_about_it(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text(f"6,1,1,-;{OOM.format(12)}\n")
    kernel = KernelLog(str(log))
    assert kernel.of(12, -9) == "", "that was before"
    with log.open("a") as file:
        file.write(f"6,2,1,-;{OOM.format(12)}\n SUBSYSTEM=x\n6,3,1,-;{OOM.format(13)}\n6,4,1,-;eth0: up\n")
    assert kernel.of(1, 1) == ""
    assert kernel.of(13, -9) == OOM.format(13) and kernel.of(12, -9) == OOM.format(12)
    with log.open("a") as file:
        file.write(f"4,5,1,-;{XID}\n")
    assert kernel.of(14, -6) == XID and kernel.of(15, -6) == "", "it is said once"


def test_where_the_log_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 3, 4, 5])
    monkeypatch.setattr(kernel_log, "_killed_in_cgroup", lambda: next(counts))
    kernel = KernelLog(str(tmp_path / "nowhere"))
    assert kernel.of(1, -9) == ""
    assert "out of memory" in kernel.of(1, -9)
    assert kernel.of(1, 1) == "", "it has not been killed"


@pytest.fixture
def small_group() -> Iterator[Path]:
    group = GROUPS / f"fftrain-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("50M")
        os.close(os.open("/dev/kmsg", os.O_RDONLY))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here, or the kernel's log not be read: {error}")
    yield group
    group.rmdir()


def test_a_process_that_the_kernel_kills(small_group: Path) -> None:
    kernel = KernelLog()
    code = f"open('{small_group}/cgroup.procs', 'w').write('0'); x = bytearray(200 << 20)"
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(60) == -9
    assert f"ut of memory: Killed process {process.pid} " in kernel.of(process.pid, -9)
