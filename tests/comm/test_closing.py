"""Aborting NCCL's communicators. There is no NCCL here: gloo's groups stand for groups that NCCL has a part in."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from ff_core.comm import GroupRegistry, nccl

PATIENCE_S = 10.0


class SlowAbort:
    """`nccl.abort` that returns when it may."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.begun, self.may_return = threading.Event(), threading.Event()

    def __call__(self, groups: list[dist.ProcessGroup]) -> None:
        self.asked.append(len(groups))
        self.begun.set()
        assert self.may_return.wait(PATIENCE_S)


@pytest.fixture
def abort(monkeypatch: pytest.MonkeyPatch) -> SlowAbort:
    slow = SlowAbort()
    monkeypatch.setattr(nccl, "abort", slow)
    monkeypatch.setattr(nccl, "has_part_in", lambda group: True)
    return slow


def test_a_halt_does_not_wait_for_the_abort_to_return(registry: GroupRegistry, abort: SlowAbort) -> None:
    registry.halt(1)
    assert abort.begun.wait(PATIENCE_S)
    registry.drop()  # what the aborting thread uses stays alive
    abort.may_return.set()
    registry.wait_closed()
    assert abort.asked == [1]


def test_a_second_halt_aborts_nothing_twice(registry: GroupRegistry, abort: SlowAbort) -> None:
    registry.halt(1)
    assert abort.begun.wait(PATIENCE_S)
    registry.halt(2)
    abort.may_return.set()
    registry.wait_closed()
    assert abort.asked == [1]


def test_the_process_ends_after_its_aborts(registry: GroupRegistry, abort: SlowAbort) -> None:
    registry.halt(1)
    assert abort.begun.wait(PATIENCE_S)
    threading.Timer(0.2, abort.may_return.set).start()
    registry.close()
    assert abort.may_return.is_set()
