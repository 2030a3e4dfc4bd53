"""From where to where a collective that a device runs is in flight: what the host is told of it."""

from __future__ import annotations

import gc
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ff_core.comm.cell import Cell
from ff_core.comm.group import SwappableGroup
from ff_core.comm.journal import Journal
from ff_core.errors import FailoverInterrupt
from tests.comm.harness import Worker, run


class Followed:
    """Says in `log` what becomes of number `number`."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.number = log, sum(entry.startswith("begin") for entry in log)
        self.log.append(f"begin {self.number}")

    def end(self) -> None:
        self.log.append(f"end {self.number}")

    def forget(self) -> None:
        self.log.append(f"forget {self.number}")


def as_if_nccl(worker: Worker) -> list[str]:
    """Operations of a group that gloo carries and that claims to be NCCL's: what the host was told of each."""
    dist.init_process_group("gloo")
    group: Any = dist.distributed_c10d._get_default_group()
    log: list[str] = []
    worker.host.begins = lambda: Followed(log)
    value = torch.ones(4)
    dist.all_reduce(value)
    assert not log, "gloo has done its work when it returns"
    worker.registry.journal.freeze()  # training has started: nobody reads results
    group.spec.devices = {"cpu": "nccl"}
    log.append("sync")
    dist.all_reduce(value)
    log.append("waited for twice")
    work = dist.all_reduce(value, async_op=True)
    log.append("launched")
    work.wait()
    work.wait()
    log.append("seen complete")
    work = dist.broadcast(value, 0, async_op=True)
    while not work.is_completed():
        time.sleep(0.001)
    log.append("future")
    work = dist.all_reduce(value, async_op=True)
    work.get_future().wait()
    work.wait()
    log.append("dropped")
    work = dist.all_reduce(value, async_op=True)
    del work
    gc.collect()
    log.append("halted")
    work = dist.all_reduce(value, async_op=True)
    worker.host.announced = 1
    worker.registry.halt(1)
    worker.registry.drop()
    with pytest.raises(FailoverInterrupt):
        work.wait()
    return log


def test_handles_end_what_they_wait_for() -> None:
    for log in run(2, as_if_nccl):
        assert log == [
            *("sync", "begin 0", "end 0"),
            *("waited for twice", "begin 1", "launched", "end 1"),
            *("seen complete", "begin 2", "forget 2"),
            *("future", "begin 3", "end 3"),
            *("dropped", "begin 4"),  # the host's own goes with the handle
            *("halted", "begin 5", "forget 5"),
        ]


class Inner:
    """An NCCL group whose operations `handle` stands for: None where torch has waited itself."""

    def __init__(self, log: list[str], handle: Any) -> None:
        self.log, self.handle, self.coalescing = log, handle, False

    def operation(self, name: str) -> Any:
        self.log.append(name)
        self.coalescing = name == "_start_coalescing" or (self.coalescing and name != "_end_coalescing")
        return None if self.coalescing else self.handle


def group_over(inner: Inner) -> Any:
    """A swappable group of NCCL's over it, which notes in the same log what its host is told."""
    registry = SimpleNamespace(
        journal=Journal(record=False), host=SimpleNamespace(collective_begins=lambda: Followed(inner.log)), over=False
    )
    group: Any = SimpleNamespace(registry=registry, _coalesced=None, _followed=None)
    group.spec = SimpleNamespace(devices={"cuda": "nccl"}, key="world", timeout=None)
    cell = Cell(registry, None, None, 0)  # type: ignore[arg-type]
    group.live = lambda: cell
    group._call = lambda cell, name, args, kwargs: inner.operation(name)
    for name in ("_run", "_waits", "_follow", "name", "_end_coalescing"):
        setattr(group, name, getattr(SwappableGroup, name).__get__(group))
    return group


def test_what_torch_has_waited_for_itself_has_ended_behind_its_launch() -> None:
    log: list[str] = []
    assert group_over(Inner(log, None))._run("allreduce", ([torch.zeros(1)],), {}) is None
    assert log == ["begin 0", "allreduce", "end 0"]


@pytest.mark.parametrize("synchronous", [True, False])
def test_coalesced_operations_are_one(synchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    handle = SimpleNamespace(wait=lambda *_: log.append("wait"))
    group = group_over(Inner(log, None if synchronous else handle))
    group.live().registry.host.enter = group.live().registry.host.leave = lambda *_: None
    monkeypatch.setattr("ff_core.comm.group.dist.ProcessGroup", object)  # what a living inner group is
    SwappableGroup._start_coalescing(group, torch.device("cuda"))
    for _ in range(2):
        assert group._run("allreduce", ([torch.zeros(1)],), {}) is None
    work = group._end_coalescing(torch.device("cuda"))
    if not synchronous:
        work.wait()
    launched = ["begin 0", "_start_coalescing", "allreduce", "allreduce", "_end_coalescing"]
    assert log == [*launched, "end 0"] if synchronous else [*launched, "wait", "end 0"]
