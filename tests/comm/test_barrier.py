"""Which device an NCCL barrier runs on. There is no GPU here: the groups are described, their tensors are fake."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from ff_core.comm import nccl
from ff_core.comm.barrier import BarrierDevices
from ff_core.comm.builder import Batch
from ff_core.comm.spec import GroupSpec


def spec(key: str, ranks: tuple[int, ...], rank: int, backend: str = "nccl", bound: int | None = None) -> GroupSpec:
    return GroupSpec(
        name=key,
        key=key,
        rank=ranks.index(rank),
        size=len(ranks),
        ranks=ranks,
        backend=backend,
        devices={"cuda": backend},
        timeout=timedelta(seconds=1),
        bound_device=None if bound is None else torch.device("cuda", bound),
    )


@pytest.fixture(autouse=True)
def four_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.fixture
def devices() -> BarrierDevices:
    return BarrierDevices()


def placed(devices: BarrierDevices, group: GroupSpec) -> list[int]:
    """The devices of a barrier for which the script names none."""
    options = dist.BarrierOptions()
    args, kwargs = devices.begins(group, "barrier", (), {"opts": options})
    assert args == () and kwargs == {"opts": options}
    return list(options.device_ids)


def used(devices: BarrierDevices, group: GroupSpec, index: int) -> None:
    with FakeTensorMode():
        tensor = torch.empty(2, device=f"cuda:{index}")
    devices.begins(group, "allreduce", ([tensor], None), {})


def test_the_device_that_the_group_has_used_first(devices: BarrierDevices) -> None:
    world, pair = spec("0", (0, 1, 2, 3), 1), spec("1", (0, 1), 1)
    used(devices, pair, 3)
    used(devices, world, 2)
    used(devices, world, 0)
    assert placed(devices, world) == [2]
    assert placed(devices, pair) == [3]


def test_a_group_without_operations_uses_the_processs_device(devices: BarrierDevices) -> None:
    used(devices, spec("1", (0, 1), 1), 3)
    assert placed(devices, spec("0", (0, 1, 2, 3), 1)) == [3]


def test_without_any_operation_the_global_rank_says_it(devices: BarrierDevices) -> None:
    """The rank in the group would say 0: on another rank's device."""
    assert placed(devices, spec("7", (5,), 5)) == [1]


def test_what_the_script_names_stays(devices: BarrierDevices) -> None:
    group = spec("0", (0, 1), 1)
    used(devices, group, 3)
    options = dist.BarrierOptions()
    options.device_ids = [2]
    devices.begins(group, "barrier", (options,), {})
    assert list(options.device_ids) == [2]
    assert placed(devices, spec("1", (0, 1), 1, bound=0)) == []  # torch takes the bound one


def test_options_are_made_where_there_are_none(devices: BarrierDevices) -> None:
    args, kwargs = devices.begins(spec("0", (0, 1), 1), "barrier", (), {})
    assert args == () and list(kwargs["opts"].device_ids) == [1]


def test_gloo_needs_no_device(devices: BarrierDevices) -> None:
    group = spec("0", (0, 1), 1, backend="gloo")
    used(devices, group, 3)
    assert placed(devices, group) == []
    assert devices.begins(group, "barrier", (), {}) == ((), {})


@pytest.fixture
def nothing_made() -> Iterator[None]:
    before = nccl.made.is_set()
    nccl.made.clear()
    yield
    (nccl.made.set if before else nccl.made.clear)()


def waits(batch: Batch, group: GroupSpec) -> threading.Thread:
    thread = threading.Thread(target=batch.wait_for_name, args=(group,), daemon=True)
    thread.start()
    thread.join(0.2)
    return thread


@pytest.mark.usefixtures("nothing_made")
def test_a_process_is_named_after_its_global_rank() -> None:
    """torch keeps the rank in the first NCCL group of a process for its messages: a small group lets WORLD go first."""
    world, small = spec("0", (0, 1), 1), spec("1", (1,), 1)
    batch = Batch([small, world])
    taken = batch.take()
    assert taken is world
    batch.wait_for_name(world)
    thread = waits(batch, small)
    assert thread.is_alive()
    nccl.made.set()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.usefixtures("nothing_made")
def test_nothing_waits_for_a_first_group_that_failed() -> None:
    batch = Batch([spec("0", (0, 1), 1), spec("1", (1,), 1)])
    batch.fail(ValueError("no"))
    with pytest.raises(RuntimeError, match="abandoned"):
        batch.wait_for_name(spec("1", (1,), 1))


@pytest.mark.usefixtures("nothing_made")
def test_nothing_waits_if_the_first_group_would_name_it_wrongly() -> None:
    small, other = spec("1", (1,), 1), spec("2", (0, 1), 1)
    batch = Batch([small, other])
    batch.wait_for_name(other)
