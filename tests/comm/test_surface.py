"""Nothing that `dist.ProcessGroup` offers reaches torch's C++ by accident."""

from __future__ import annotations

import os
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ff_core.comm import GroupRegistry, SwappableGroup, compat, install, installed, surface
from ff_core.comm.sockets import _listening as listening
from ff_core.errors import FailoverInterrupt, UnsupportedError
from tests.comm.harness import Host


def methods() -> list[str]:
    return [name for name in dir(dist.ProcessGroup) if not (name.startswith("__") and name.endswith("__"))]


@pytest.mark.parametrize("name", methods())
def test_every_method_is_classified(name: str) -> None:
    """Each is answered or refused by us; what is inherited is on a list that somebody has looked at."""
    if name in surface.INHERITED:
        assert name not in vars(SwappableGroup)
    else:
        assert name in vars(SwappableGroup)


def test_a_method_of_a_newer_torch_is_refused() -> None:
    class Newer(dist.ProcessGroup):
        def all_shuffle(self) -> None: ...

    surface.complete(Newer)
    unknown = [name for name in dir(dist.ProcessGroup) if name not in vars(Newer) and name not in dir(object)]
    assert set(unknown) <= surface.INHERITED


CALLS: dict[str, tuple[Any, ...]] = {
    "set_timeout": (timedelta(seconds=9),),
    "split_group": ([0],),
    "_get_backend": (torch.device("cpu"),),
    "_start_coalescing": (torch.device("cpu"),),
    "_end_coalescing": (torch.device("cpu"),),
    "_register_on_completion_hook": (print,),
}


def test_every_method_is_ours_or_raises(registry: GroupRegistry) -> None:
    """While halted, every call on a live group raises FailoverInterrupt, is refused, or needs no connection."""
    world = dist.group.WORLD
    assert isinstance(world, SwappableGroup)
    local = {"name", "getBackendName", "_get_backend_name", "_device_types", "get_group_store", "shutdown", "abort"}
    registry.halt(1)
    for name in sorted(set(methods()) - surface.INHERITED - local):
        with pytest.raises((FailoverInterrupt, UnsupportedError)):
            getattr(world, name)(*CALLS.get(name, ()))


def test_collectives_that_miss_the_python_methods_are_refused(registry: GroupRegistry) -> None:
    """The C++ base class's own dispatch must not complete an operation without doing it."""
    with pytest.raises(RuntimeError, match=r"FakeProcessGroup|Could not retrieve or create the backend"):
        dist.ProcessGroup.reduce(dist.group.WORLD, torch.ones(1), 0).wait()


def test_inherited_answers(registry: GroupRegistry) -> None:
    group = dist.new_group([0], group_desc="alone")
    assert (group.rank(), group.size(), group.group_name, group.group_desc) == (0, 1, "1", "alone")
    assert group.name() == "gloo"
    assert group._device_types == [torch.device("cpu"), torch.device("cuda")] or torch.device("cpu") in (
        group._device_types
    )
    assert dist.get_backend(group) == "gloo"
    assert dist.distributed_c10d._resolve_process_group(group.group_name) is group
    assert isinstance(group._get_backend(torch.device("cpu")), dist.ProcessGroupGloo)
    group.get_group_store().set("key", "value")
    assert group.get_group_store().get("key") == b"value"


@pytest.mark.parametrize("backend", ["mpi", "ucc", "cpu:gloo,cuda:ucc"])
def test_other_backends_are_refused(registry: GroupRegistry, backend: str) -> None:
    with pytest.raises(UnsupportedError, match="gloo, nccl"):
        dist.new_group([0], backend=backend)


def test_late_installation_is_refused(registry: GroupRegistry) -> None:
    with pytest.raises(UnsupportedError, match="twice"):
        install(registry.host, solo=False)


def test_installation_after_initialisation_is_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(UnsupportedError, match="fftrain run"):
            install(Host(0, 0, 0.0), solo=False)
    finally:
        dist.destroy_process_group()
    assert installed() is None


def test_a_fake_group_is_left_to_torch(registry: GroupRegistry) -> None:
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  (registers the backend)

    group = dist.new_group([0], backend="fake")
    assert not isinstance(group, SwappableGroup)


def test_nccl_is_asked_of_torch(registry: GroupRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factory names it; a build without NCCL says so."""
    monkeypatch.setattr(compat, "nccl_type", lambda: None)
    with pytest.raises(RuntimeError, match="NCCL"):
        dist.new_group([0], backend="nccl")


def test_uninstalling_restores_torch(registry: GroupRegistry) -> None:
    patched = torch.autograd._engine_run_backward
    dist.destroy_process_group()
    registry.uninstall()
    assert torch.autograd._engine_run_backward is not patched
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert not isinstance(dist.group.WORLD, SwappableGroup)


def test_generation_is_checked(registry: GroupRegistry) -> None:
    registry.assert_generation(0)
    assert registry.connected_epoch == 0
    registry.halt(1)
    registry.drop()
    assert registry.connected_epoch is None
    with pytest.raises(AssertionError, match="dropped"):
        registry.assert_generation(1)
    registry.host.epoch = 1
    registry.regroup(1)
    registry.assert_generation(1)
    with pytest.raises(AssertionError, match=r"stale groups: \{'0': 1\}"):
        registry.assert_generation(2)


def test_a_late_halt_changes_nothing(registry: GroupRegistry) -> None:
    registry.halt(1)
    registry.drop()
    registry.regroup(1)
    registry.halt(1)
    assert registry.halted_epoch is None
    dist.all_reduce(torch.ones(1))
    registry.halt(2)
    with pytest.raises(FailoverInterrupt):
        dist.all_reduce(torch.ones(1))


def test_destroyed_groups_are_not_built_again(registry: GroupRegistry) -> None:
    group = dist.new_group([0])
    dist.destroy_process_group(group)
    assert [item.spec.name for item in registry.groups()] == ["0"]
    with pytest.raises(ValueError, match="destroyed"):
        group.allreduce([torch.ones(1)])


def test_a_changed_timeout_survives_the_swap(registry: GroupRegistry) -> None:
    world = dist.group.WORLD
    assert world is not None
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=7), world)
    registry.halt(1)
    registry.drop()
    registry.regroup(1)
    assert world._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)


def test_two_initialisations_use_different_keys(registry: GroupRegistry) -> None:
    dist.destroy_process_group()
    dist.init_process_group("gloo")
    assert [group.spec.key for group in registry.groups()] == ["0#1"]
    value = torch.ones(1)
    dist.all_reduce(value)
    assert value.item() == 1.0


def test_old_generation_is_not_referenced(registry: GroupRegistry) -> None:
    world = dist.group.WORLD
    assert isinstance(world, SwappableGroup) and world.generation is not None
    handle = dist.all_reduce(torch.ones(1), async_op=True)
    inner = weakref.ref(world.generation.inner)
    registry.halt(1)
    try:
        dist.all_reduce(torch.ones(1))
    except FailoverInterrupt as interrupt:
        kept = interrupt  # as a framework that logs it would
    registry.drop()
    registry.wait_closed()
    assert inner() is None
    assert kept.epoch == 1
    assert handle is not None
    with pytest.raises(FailoverInterrupt):
        handle.wait()


def test_fork_lets_go_of_group_sockets(registry: GroupRegistry) -> None:
    """Listener included: who connects to a dead rank must be refused, not kept waiting by its orphan."""
    sockets = registry._sockets
    (listener,) = [fd for fd, (_, address) in listening().items() if address in sockets.own_addresses()]
    link = Path(f"/proc/self/fd/{listener}")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(link.readlink()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"/dev/null"
    assert str(link.readlink()).startswith("socket:")
