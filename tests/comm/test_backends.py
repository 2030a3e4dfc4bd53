"""Which backend carries an operation, and how it is waited for; what NCCL is told before the first group exists."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ff_core.comm import nccl
from ff_core.comm.barrier import BarrierDevices
from ff_core.comm.done import DoneWork
from ff_core.comm.group import SwappableGroup
from ff_core.comm.journal import Journal
from ff_core.comm.whole import WholeGroup
from ff_core.comm.work import SwappableWork, Waits

GLOO = {"cpu": "gloo", "cuda": "gloo"}
MIXED = {"cpu": "gloo", "cuda": "nccl"}
NCCL = {"cuda": "nccl"}


def waits(devices: dict[str, str], op: str, *values: Any) -> Waits:
    group: Any = SimpleNamespace(spec=SimpleNamespace(devices=devices))
    group.name = lambda: SwappableGroup.name(group)
    return SwappableGroup._waits(group, op, values)


def tensor(device: str) -> torch.Tensor:
    with FakeTensorMode():  # of no machine's memory
        return torch.empty(1, device=device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gloo_is_never_waited_for_without_looking_up(device: str) -> None:
    assert waits(GLOO, "allreduce", [tensor(device)], None) is Waits.SLICES
    assert waits(GLOO, "gather", [], [tensor(device)], None) is Waits.SLICES
    assert waits(GLOO, "send", [tensor(device)], 1, 0) is Waits.ASIDE
    assert waits(GLOO, "barrier", SimpleNamespace(device=torch.device(device))) is Waits.SLICES
    assert waits(GLOO, "barrier") is Waits.SLICES


def test_nccl_is_waited_for_as_torch_does() -> None:
    for devices in (MIXED, NCCL):
        assert waits(devices, "allreduce", [tensor("cuda")], None) is Waits.INNER
        assert waits(devices, "send", [tensor("cuda")], 1, 0) is Waits.INNER
        assert waits(devices, "barrier", SimpleNamespace(device=torch.device("cuda", 0))) is Waits.INNER
    assert waits(MIXED, "allreduce", [tensor("cpu")], None) is Waits.SLICES
    assert waits(MIXED, "barrier", SimpleNamespace(device=torch.device("cpu"))) is Waits.SLICES
    assert waits(MIXED, "gather", [], [tensor("cpu")], None) is Waits.SLICES


def test_a_survivor_is_not_ended_by_nccls_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    monkeypatch.setenv("TORCH_NCCL_ENABLE_MONITORING", "1")  # the user's own wish
    monkeypatch.setenv("TORCH_NCCL_RETHROW_CUDA_ERRORS", "")
    nccl.leave_errors_to_us()
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert os.environ["TORCH_NCCL_ENABLE_MONITORING"] == "1"


class Sync:
    """As a group of NCCL's, whose operations are waited for when they return, and which then gives no handle out."""

    perform, end_block = SwappableGroup.perform, SwappableGroup.end_block
    _waits, _follow, name = SwappableGroup._waits, SwappableGroup._follow, SwappableGroup.name
    start_block, _own_block = SwappableGroup.start_block, SwappableGroup._own_block

    def __init__(self) -> None:
        host = SimpleNamespace(collective_begins=lambda: None)
        self.registry = SimpleNamespace(
            journal=Journal(record=True), host=host, barriers=BarrierDevices(), whole=WholeGroup()
        )
        self.spec = SimpleNamespace(key="world", devices=NCCL)
        self._block: Any = None

    def live(self) -> Any:
        return SimpleNamespace(inner=None)

    def _call(self, generation: Any, op: str, args: Any, kwargs: Any) -> None:
        if op == "broadcast":
            args[0][0].fill_(7)


@pytest.mark.parametrize("coalesced", [False, True])
def test_what_torch_has_waited_for_itself_is_in_the_journal(coalesced: bool) -> None:
    """With a value of 0 in its place a replacement would take another way through the script."""
    group: Any = Sync()
    if coalesced:
        group.start_block(torch.device("cuda"))
    assert group.perform("broadcast", ([torch.zeros(3)], None), {}) is None
    if coalesced:
        group.end_block(torch.device("cuda"))
    replay = Journal(record=False, data=group.registry.journal.freeze())
    value = torch.zeros(3)
    entry = replay.begin("world", "broadcast", [value])
    assert entry is not None
    entry.replay([value], DoneWork([value]))
    assert value.tolist() == [7, 7, 7]


def test_results_found_complete_are_read_after_a_wait() -> None:
    """A result on a GPU may be complete for the host while its last copy waits on a stream of gloo's."""
    calls: list[str] = []
    inner = SimpleNamespace(
        is_completed=lambda: True, is_success=lambda: True, wait=lambda: calls.append("wait") or True
    )
    registry: Any = SimpleNamespace(over=False)
    generation: Any = SimpleNamespace(era=registry, works=set())
    work = SwappableWork(generation, inner, lambda _: calls.append("read"), waits=Waits.SLICES)
    assert work.is_completed() and work.is_completed()
    assert calls == ["wait", "read"]
