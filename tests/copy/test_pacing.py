"""Deadlines and yielding of a writer, end to end. The arithmetic is tests/csrc/pacer_check.cpp."""

from __future__ import annotations

import pytest

from ff_core.contract.activity import ACTIVITY_COLLECTIVE
from ff_core.errors import EngineError
from tests.copy.rig import Rig, eventually


def learn(rig: Rig) -> int:
    """Versions at full speed, from which the writer learns its own; returns the next version."""
    for version in range(4):
        rig.run(version % 2, 1, version)
    return 4


def test_yields_to_a_collective_and_commits_all_the_same() -> None:
    with Rig(sent=3_000_000, holders=1) as rig:
        rig.connect(1)
        version = learn(rig)
        rig.writer.set_window(0.5)
        rig.page.store("activity", ACTIVITY_COLLECTIVE)  # and it never ends
        for number in range(version, version + 3):
            content = rig.run(number % 2, 1, number)
        slot = rig.holders[0].find(1, number)
        assert slot is not None
        assert rig.restored(rig.holders[0], slot) == content[: rig.sent]
        stats = rig.writer.stats()
        assert stats.yielded_ns > 0
        assert stats.deadlines == 3


def test_missed_deadlines_are_counted() -> None:
    with Rig(holders=1) as rig:
        rig.connect(1)
        version = learn(rig)
        rig.writer.set_window(1e-6)
        for number in range(version, version + 3):
            rig.run(number % 2, 1, number)
        stats = rig.writer.stats()
        assert (stats.deadlines, stats.deadlines_missed) == (3, 3)
        rig.writer.set_window(0)
        rig.run((version + 3) % 2, 1, version + 3)
        assert rig.writer.stats().deadlines == 3


@pytest.mark.parametrize("seconds", [-1.0, 1e7, float("nan")])
def test_impossible_windows_are_refused(seconds: float) -> None:
    with Rig() as rig, pytest.raises(EngineError, match="window is"):
        rig.writer.set_window(seconds)


def test_reconnects_after_an_epoch_change() -> None:
    """Cancel, retire, connect again, resend: as a failover does, ten times in a row."""
    with Rig(sent=1_000_000, holders=2) as rig:
        rig.connect(1)
        rig.run(0, 1, 0)
        for epoch in range(2, 12):
            rig.writer.cancel()
            rig.receiver.retire_before(epoch)
            rig.own.restamp(0, epoch)
            for holder in rig.holders:
                holder.restamp(0, epoch)
            rig.connect(epoch)
            rig.writer.resend(0, epoch, 0)
            eventually(lambda epoch=epoch: rig.committed(epoch, 0), "commit in the new epoch")  # type: ignore[misc]
