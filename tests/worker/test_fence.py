"""The lock that makes a halt final, when the training thread is held up behind it."""

from __future__ import annotations

import threading

import pytest

from ff_core.copy.page import StatusPage
from ff_core.errors import FailoverInterrupt
from ff_core.worker.fence import Fence


def nothing(version: int) -> None:
    pass


def test_a_device_that_holds_up_the_fence_is_freed_and_has_made_nothing() -> None:
    """The start of a copy waits for room in the queue of a device that is in a collective of the dead."""
    page = StatusPage.create()
    fence = Fence(page, epoch=0)
    fence.resume(4, nothing)
    fence.enter_step()
    inside, freed = threading.Event(), threading.Event()

    def copy(version: int) -> None:
        inside.set()
        assert freed.wait(60)

    training = threading.Thread(target=fence.leave_step, args=(copy,))
    training.start()
    assert inside.wait(60)
    assert fence.halt(1, freed.set, patience_s=0.05) == (-1, False)
    training.join(60)
    assert freed.is_set() and page.load("live") == 0
    with pytest.raises(FailoverInterrupt):
        fence.check()
    assert fence.halt(2, freed.clear) == (-1, False), "and nobody remembers it otherwise"
    assert freed.is_set(), "nothing is freed where nobody is held up"
    page.close()
