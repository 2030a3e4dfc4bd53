"""Epoch after epoch in one process: descriptors, threads and memory do not grow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.copy.rig import Rig, eventually


def resources() -> tuple[int, int, int]:
    """(descriptors, threads, resident bytes)"""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    descriptors, threads = (len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))
    return descriptors, threads, resident


def same_or_fewer(before: tuple[int, int, int]) -> bool:
    """Whether there are no more descriptors and threads than before. Others' garbage may go meanwhile."""
    descriptors, threads, _ = resources()
    return descriptors <= before[0] and threads <= before[1]


def failover(rig: Rig, epoch: int) -> None:
    rig.connect(epoch)
    for version in range(3):
        rig.run(version % 2, epoch, version)
    rig.live.fill(epoch)
    rig.writer.begin(1, epoch, 3)
    rig.writer.cancel()
    rig.receiver.retire_before(epoch + 1)
    assert all(not status.open for status in rig.receiver.poll())


@pytest.mark.usefixtures("streams")
def test_many_failovers_leave_nothing_behind() -> None:
    with Rig(sent=3_000_000, local=500_000, holders=2) as rig:
        for epoch in range(5):
            failover(rig, epoch)
        before = resources()
        for epoch in range(5, 45):
            failover(rig, epoch)
        eventually(lambda: same_or_fewer(before))
        assert resources()[2] <= before[2] * 1.05
