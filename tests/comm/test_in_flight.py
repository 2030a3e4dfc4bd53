"""From where to where a collective that a device runs is in flight: what the host is told of it."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ff_core.comm.barrier import BarrierDevices
from ff_core.comm.generation import Generation
from ff_core.comm.group import SwappableGroup
from ff_core.comm.journal import Journal
from ff_core.comm.whole import WholeGroup
from ff_core.errors import FailoverInterrupt
from tests.comm.harness import Job, Worker
from tests.comm.standins import StandinEra


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
    worker.say("ready")
    worker.wait_for("halt:1")
    worker.registry.drop()
    with pytest.raises(FailoverInterrupt):
        work.wait()
    return log


def test_handles_end_what_they_wait_for() -> None:
    with Job(2) as job:
        job.start_all(as_if_nccl)
        job.hear("ready")
        job.halt(1)
        logs = job.results()
    for log in logs:
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


class Stub:
    """What torch may keep in its own tables."""


def group_over(inner: Inner) -> Any:
    """A swappable group of NCCL's over it, which notes in the same log what its host is told."""
    registry: Any = StandinEra()
    registry.host.begins = lambda: Followed(inner.log)
    registry.journal, registry.barriers, registry.whole = Journal(record=False), BarrierDevices(), WholeGroup()
    group: Any = Stub()
    group.registry, group._block = registry, None
    group.spec = SimpleNamespace(devices={"cuda": "nccl"}, key="world", timeout=None)
    generation = Generation(registry, None, None, 0)
    group.live = lambda: generation
    group._call = lambda generation, name, args, kwargs: inner.operation(name)
    blocks = ("start_block", "end_block", "leave_block", "_own_block")
    for name in ("perform", "_waits", "_follow", "name", *blocks):
        setattr(group, name, getattr(SwappableGroup, name).__get__(group))
    return group


def test_what_torch_has_waited_for_itself_has_ended_behind_its_launch() -> None:
    log: list[str] = []
    assert group_over(Inner(log, None)).perform("allreduce", ([torch.zeros(1)],), {}) is None
    assert log == ["begin 0", "allreduce", "end 0"]


@pytest.mark.parametrize("synchronous", [True, False])
def test_coalesced_operations_are_one(synchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    handle = SimpleNamespace(wait=lambda *_: log.append("wait"))
    group = group_over(Inner(log, None if synchronous else handle))
    monkeypatch.setattr("ff_core.comm.group.dist.ProcessGroup", object)  # what a living inner group is
    group.start_block(torch.device("cuda"))
    for _ in range(2):
        assert group.perform("allreduce", ([torch.zeros(1)],), {}) is None
    work = group.end_block(torch.device("cuda"))
    if not synchronous:
        work.wait()
    launched = ["begin 0", "_start_coalescing", "allreduce", "allreduce", "_end_coalescing"]
    assert log == [*launched, "end 0"] if synchronous else [*launched, "wait", "end 0"]


def test_an_operation_that_fails_ends_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would keep back everything that the thread gives it afterwards, of any group."""
    log: list[str] = []
    group = group_over(Inner(log, None))
    monkeypatch.setattr("ff_core.comm.group.dist.ProcessGroup", object)
    group.start_block(torch.device("cuda"))
    group.live().inner = SimpleNamespace(_end_coalescing=lambda device: log.append(f"ended on {device}"))

    def refuse(*_: object) -> None:
        raise RuntimeError("NCCL communicator was aborted")

    def interrupt(*_: object) -> None:
        log.append("waited for the verdict")
        raise FailoverInterrupt(1)

    group.live().inner.send = refuse
    group.live().era.failed = interrupt
    group._call = SwappableGroup._call.__get__(group)
    dist.distributed_c10d._world.pg_coalesce_state[group] = []
    with ThreadPoolExecutor(1) as other, pytest.raises(FailoverInterrupt):
        other.submit(group.perform, "send", ([torch.zeros(1)], 1, 0), {}).result()
    assert group._block is not None, "another thread has failed, outside the block"
    assert group in dist.distributed_c10d._world.pg_coalesce_state
    with pytest.raises(FailoverInterrupt):
        group.perform("send", ([torch.zeros(1)], 1, 0), {})
    assert group not in dist.distributed_c10d._world.pg_coalesce_state
    assert group._block is None
    elsewhere = ["begin 1", "waited for the verdict"]
    assert log == ["begin 0", "_start_coalescing", *elsewhere, "forget 0", "ended on cuda", "waited for the verdict"]


def halted_while_coalescing(worker: Worker, where: str) -> list[float]:
    """A halt is noticed at the start of a block, or has come within it; after the failover all is as ever."""
    dist.init_process_group("gloo")
    group: Any = dist.distributed_c10d._get_default_group()
    coalescing = dist.distributed_c10d._coalescing_manager

    def halt() -> None:
        worker.say("ready")
        worker.wait_for("halt:1")

    if where == "start":
        halt()
        with pytest.raises(FailoverInterrupt), coalescing(group, torch.device("cpu")):
            raise AssertionError("not reached")
    else:
        with pytest.raises(FailoverInterrupt), coalescing(group):
            dist.all_reduce(torch.ones(1))  # noted down by torch, done at the block's end
            halt()
            group.live()
    worker.regroup(1)
    value = torch.tensor([worker.rank + 1.0])
    dist.all_reduce(value)
    return value.tolist()


@pytest.mark.parametrize("where", ["start", "within"])
def test_after_an_interrupted_block_all_reduces_are_done_again(where: str) -> None:
    with Job(2) as job:
        job.start_all(halted_while_coalescing, where)
        job.hear("ready")
        job.halt(1)
        job.hear("dropped")
        job.tell("regroup 1")
        assert job.results() == [[3.0], [3.0]]
