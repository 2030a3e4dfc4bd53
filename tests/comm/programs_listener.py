"""The collectives of a script, by every way there is to them, with a listener that makes each of them again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as differentiable
from torch.distributed import (  # bound before anything is installed
    P2POp,
    all_gather_object,
    all_reduce,
    barrier,
    batch_isend_irecv,
    broadcast_object_list,
    destroy_process_group,
    irecv,
    isend,
)
from torch.distributed.distributed_c10d import _coalescing_manager

from ff_core.errors import interrupted
from tests.comm.harness import Worker

LONG = timedelta(seconds=100)
total = partial(all_reduce, op=dist.ReduceOp.SUM)


class Again:
    """A `Listener` that goes on after a failure: it regroups, puts the inputs back and makes the operation again."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.listening = worker, True
        self.made: list[str] = []
        self.epoch = 0

    def make(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.listening = False  # what it calls is not the script's
        try:
            self.made.append(str(getattr(function, "args", [None, "monitored_barrier"])[1]))
            given = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args)
            result, epoch = interrupted(lambda: function(*args, **kwargs))
            while epoch is not None:
                self.epoch = epoch
                self.worker.regroup(epoch)
                for live, before in zip(
                    torch.utils._pytree.tree_leaves(args), torch.utils._pytree.tree_leaves(given), strict=True
                ):
                    if isinstance(live, torch.Tensor):
                        live.copy_(before)
                result, epoch = interrupted(lambda: function(*args, **kwargs))
            return result
        finally:
            self.listening = True

    def launch(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.made.append("launched")
        self.listening = False
        try:
            return function(*args, **kwargs)
        finally:
            self.listening = True

    def leaving(self) -> None:
        self.made.append("leaving")
        self.listening = False


def ways(worker: Worker) -> dict[str, Callable[[], Any]]:
    rank, world = worker.rank, worker.world
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))

    def mine() -> torch.Tensor:
        return torch.tensor([rank + 1.0])

    def written(function: Callable[[torch.Tensor], Any]) -> float:
        value = mine()
        work = function(value)
        if work is not None:
            work.wait()
        return value.item()

    def gathered() -> list[Any]:
        objects: list[Any] = [None] * world
        all_gather_object(objects, {"rank": rank})
        return objects

    def from_first() -> list[Any]:
        objects = [f"from {rank}"]
        broadcast_object_list(objects, src=0)
        return objects

    def exchanged() -> float:
        other = torch.zeros(1)
        peer = (rank + 1) % world
        for work in batch_isend_irecv([P2POp(isend, mine(), peer), P2POp(irecv, other, (rank - 1) % world)]):
            work.wait()
        return other.item()

    def differentiated() -> list[float]:
        value = mine().requires_grad_()
        summed = differentiable.all_reduce(value * 2)
        summed.sum().backward()
        assert value.grad is not None
        return [summed.item(), value.grad.item()]

    def coalesced(device: torch.device | None) -> list[float]:
        values = [mine(), mine() * 10]
        with _coalescing_manager(device=device) as manager:
            for value in values:
                all_reduce(value)
        assert manager is not None
        return [value.item() for value in values]

    return {
        "name": lambda: written(all_reduce),
        "partial": lambda: written(total),
        "async": lambda: written(partial(all_reduce, async_op=True)),
        "deepspeed": lambda: written(deepspeed_s()),
        "barrier": barrier,
        "monitored": lambda: dist.monitored_barrier(timeout=LONG),
        "gather objects": gathered,
        "broadcast objects": from_first,
        "functional": lambda: (functional.all_reduce(mine(), "sum", dist.group.WORLD) + 0).item(),
        "operator": lambda: torch.ops._c10d_functional.wait_tensor(
            torch.ops._c10d_functional.all_reduce(mine(), "sum", dist.group.WORLD.group_name)  # type: ignore[union-attr]
        ).item(),
        "differentiable": differentiated,
        "mesh": lambda: written(partial(all_reduce, group=mesh.get_group())),
        "tensor": lambda: distributed_sum(mesh, mine()),
        "coalesced": lambda: coalesced(None),
        "batch": exchanged,
    }


def deepspeed_s() -> Callable[[torch.Tensor], Any]:
    """As a framework keeps it: an attribute that was read before."""
    return Kept.all_reduce


class Kept:
    all_reduce = staticmethod(all_reduce)


def distributed_sum(mesh: Any, value: torch.Tensor) -> float:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    sharded = DTensor.from_local(value, mesh, [Shard(0)], run_check=False)
    return float(sharded.sum().redistribute(mesh, [Replicate()]).to_local())


def listened(worker: Worker, interrupt: list[str]) -> dict[str, Any]:
    """Each way once; rank 0 waits in those of `interrupt` when the halt comes."""
    dist.init_process_group("gloo", timeout=LONG)
    plain = {name: way() for name, way in ways(worker).items()}
    listener = Again(worker)
    every = ways(worker)
    worker.registry.listener = listener
    made, results = {}, {}
    for number, (name, way) in enumerate(every.items(), start=1):
        if name in interrupt:
            worker.say(f"at {name}")
            if worker.rank:
                worker.wait_for(f"halt:{number}")
        before = len(listener.made)
        results[name] = way()
        made[name] = listener.made[before:]
    destroy_process_group()
    return {"same": results == plain, "results": repr(results), "made": made, "end": listener.made[-1]}
