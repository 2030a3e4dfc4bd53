"""Programs that use every operation of torch.distributed once and return what came out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _coalescing_manager

from tests.comm.harness import Worker


def numbers(rank: int, count: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(count, dtype=dtype) * (rank + 1) + rank


def start(worker: Worker) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))


def journaled(worker: Worker, program: str) -> list[Any]:
    """[the program's results, its journal]."""
    out = globals()[program](worker)
    return [out, worker.registry.journal.unused(), worker.registry.journal.freeze()]


def every_collective(worker: Worker) -> dict[str, Any]:
    """One of each, synchronous."""
    start(worker)
    rank, world = worker.rank, worker.world
    out: dict[str, Any] = {}

    for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.PRODUCT):
        value = numbers(rank)
        dist.all_reduce(value, op)
        out[f"all_reduce {op}"] = value.tolist()
    value = numbers(rank, dtype=torch.bfloat16)
    dist.all_reduce(value)
    out["all_reduce bf16"] = value.tolist()
    value = numbers(rank)
    dist.broadcast(value, 1)
    out["broadcast"] = value.tolist()
    value = numbers(rank)
    dist.reduce(value, 0)
    out["reduce"] = value.tolist() if rank == 0 else None
    gathered = [torch.zeros(4) for _ in range(world)]
    dist.all_gather(gathered, numbers(rank))
    out["all_gather"] = [item.tolist() for item in gathered]
    flat = torch.zeros(4 * world)
    dist.all_gather_into_tensor(flat, numbers(rank))
    out["all_gather_into_tensor"] = flat.tolist()
    gathered = [torch.zeros(4) for _ in range(world)] if rank == 1 else None
    dist.gather(numbers(rank), gathered, dst=1)
    out["gather"] = [item.tolist() for item in gathered] if gathered else None
    piece = torch.zeros(4)
    dist.scatter(piece, [numbers(r + 5) for r in range(world)] if rank == 0 else None, src=0)
    out["scatter"] = piece.tolist()
    piece = torch.zeros(4)
    dist.reduce_scatter(piece, [numbers(rank + r) for r in range(world)])
    out["reduce_scatter"] = piece.tolist()
    piece = torch.zeros(4)
    dist.reduce_scatter_tensor(piece, numbers(rank, 4 * world))
    out["reduce_scatter_tensor"] = piece.tolist()
    flat = torch.zeros(2 * world)
    dist.all_to_all_single(flat, numbers(rank, 2 * world))
    out["all_to_all_single"] = flat.tolist()
    uneven = [1] * (world - 1) + [3]
    flat = torch.zeros(world * uneven[rank])
    dist.all_to_all_single(flat, numbers(rank, sum(uneven)), [uneven[rank]] * world, uneven)
    out["all_to_all_single uneven"] = flat.tolist()
    sparse = torch.sparse_coo_tensor([[rank]], [float(rank + 1)], (world,))
    dist.all_reduce(sparse)
    out["all_reduce sparse"] = sparse.to_dense().tolist()
    dist.barrier()
    dist.monitored_barrier(timeout=timedelta(seconds=30))
    if rank == 0:
        dist.send(numbers(7), 1)
        dist.recv(value, 1, tag=3)
        out["recv"] = value.tolist()
    elif rank == 1:
        out["recv from"] = dist.recv(value)  # from anyone
        dist.send(value * 2, 0, tag=3)
    return out


def objects_and_batches(worker: Worker) -> dict[str, Any]:
    """Object collectives, batched p2p, coalescing, async handles, subgroups."""
    start(worker)
    rank, world = worker.rank, worker.world
    out: dict[str, Any] = {}
    things: list[Any] = [None] * world
    dist.all_gather_object(things, {"rank": rank, "words": ["x"] * rank})
    out["all_gather_object"] = things
    box = ["from two", {"a": 1}] if rank == 0 else [None, None]
    dist.broadcast_object_list(box, 0)
    out["broadcast_object_list"] = box
    got: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object((rank, "g"), got, dst=0)
    out["gather_object"] = got
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, [f"for {r}" for r in range(world)] if rank == 0 else None, src=0)
    out["scatter_object_list"] = mine

    right, left, received = (rank + 1) % world, (rank - 1) % world, torch.zeros(4)
    batch = [dist.P2POp(dist.irecv, received, left), dist.P2POp(dist.isend, numbers(rank), right)]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    out["batch_isend_irecv"] = received.tolist()

    values = [numbers(rank), numbers(rank + 3)]
    with _coalescing_manager():
        for value in values:
            dist.all_reduce(value)
    out["coalesced all_reduce"] = [value.tolist() for value in values]
    flats = [torch.zeros(4 * world), torch.zeros(4 * world)]
    with _coalescing_manager(async_ops=True) as manager:
        for flat in flats:
            dist.all_gather_into_tensor(flat, numbers(rank))
    manager.wait()
    out["coalesced all_gather"] = [flat.tolist() for flat in flats]

    value = numbers(rank)
    work = dist.all_reduce(value, async_op=True)
    assert work is not None
    work.wait()
    out["async"] = value.tolist()
    out["async done"] = [work.is_completed(), work.is_success()]
    out["result"] = [item.tolist() for item in work.result()] if hasattr(work, "result") else None
    value = numbers(rank)
    future = dist.all_reduce(value, async_op=True).get_future()
    out["future"] = [item.tolist() for item in future.wait()]
    out["future then"] = future.then(lambda done: done.value()[0].sum().item()).wait()

    group = dist.new_group([0, 1], timeout=timedelta(seconds=33), group_desc="pair")
    if rank < 2:
        value = numbers(rank)
        dist.all_reduce(value, group=group)
        out["new_group"] = [value.tolist(), dist.get_rank(group), dist.get_world_size(group), group.group_desc]
        out["ranks"] = dist.get_process_group_ranks(group)
        out["group name"] = [group.group_name, group.name(), dist.get_backend(group), str(group._device_types)]
    mixed = dist.new_group(backend="cpu:gloo")
    dist.barrier(group=mixed)
    out["mixed"] = [dist.get_backend(mixed), dist.get_backend_config(mixed), dist.get_backend(), dist.get_pg_count()]
    subgroup, everyone = dist.new_subgroups(2)
    value = numbers(rank)
    dist.all_reduce(value, group=subgroup)
    out["new_subgroups"] = [value.tolist(), len(everyone), [str(item) for item in everyone].count("None")]
    dist.destroy_process_group(mixed)
    out["after destroy"] = dist.get_pg_count()
    store = dist.distributed_c10d._get_default_store()
    store.set(f"k{rank}", f"v{rank}")
    store.wait(["k0"])
    out["store"] = [store.get("k1").decode(), store.check(["k0", "nothing"])]
    dist.barrier()
    out["store add"] = store.add("counter", 0)
    return out


def functional_and_mesh(worker: Worker) -> dict[str, Any]:
    """Functional collectives (C++ waits), DeviceMesh, DTensor, DDP."""
    start(worker)
    rank, world = worker.rank, worker.world
    out: dict[str, Any] = {}
    group = dist.group.WORLD
    out["f all_reduce"] = functional.all_reduce(numbers(rank), "sum", group).tolist()
    out["f all_gather"] = functional.all_gather_tensor(numbers(rank), 0, group).tolist()
    out["f reduce_scatter"] = functional.reduce_scatter_tensor(numbers(rank, 4 * world), "sum", 0, group).tolist()
    out["f all_to_all"] = functional.all_to_all_single(numbers(rank, 2 * world), None, None, group).tolist()
    out["f broadcast"] = functional.broadcast(numbers(rank), 1, group).tolist()
    coalesced = functional.all_reduce_coalesced([numbers(rank), numbers(rank + 1)], "sum", group)
    out["f coalesced"] = [item.tolist() for item in coalesced]

    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("outer", "inner"))
    value = numbers(rank)
    dist.all_reduce(value, group=mesh["inner"].get_group())
    out["mesh inner"] = value.tolist()
    value = numbers(rank)
    dist.all_reduce(value, group=mesh.get_group("outer"))
    out["mesh outer"] = value.tolist()
    out["mesh coordinate"] = mesh.get_coordinate()
    from torch.distributed.tensor import Shard, distribute_tensor

    tensor = distribute_tensor(torch.arange(4.0 * world).reshape(2 * world, 2), mesh["outer"], [Shard(0)])
    out["dtensor"] = (tensor.full_tensor() * 2).tolist()

    torch.manual_seed(rank)
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)), bucket_cap_mb=0.0001
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(4):
        loss = model(numbers(rank + step, 8).reshape(2, 4) / 10).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    out["ddp losses"] = losses
    out["ddp weights"] = [parameter.detach().flatten().tolist() for parameter in model.parameters()]
    return out
