"""Programs whose control flow depends on what other ranks say, and their repetition alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ff_core.comm import SwappableGroup
from tests.comm.harness import Worker
from tests.comm.programs_failure import check_sum, interrupted

LONG = timedelta(seconds=100)


def init_script(worker: Worker) -> dict[str, Any]:
    """An initialisation with everything that a newcomer cannot know by itself."""
    dist.init_process_group("gloo", timeout=LONG)
    rank, world = worker.rank, worker.world
    pair = dist.new_group([0, 2])
    out: dict[str, Any] = {}
    flags = torch.tensor([7, 8, 9]) if rank == 0 else torch.zeros(3, dtype=torch.long)
    dist.broadcast(flags, 0)
    out["flags"] = flags.tolist()
    names: list[Any] = [None] * world
    dist.all_gather_object(names, {"rank": rank, "pad": "x" * (1000 * rank)})
    out["names"] = names
    box = [list(range(5000))] if rank == 0 else [None]  # more than 64 KiB, as an object
    dist.broadcast_object_list(box, 0)
    out["box"] = sum(box[0] or [])
    if flags[0] == 7 and rank != 1:
        out["pair"] = check_sum(worker, pair)
    scalar = torch.tensor(float(rank), dtype=torch.bfloat16)
    work = dist.all_reduce(scalar, dist.ReduceOp.MAX, async_op=True)
    assert work is not None
    work.wait()
    out["max"] = scalar.item()
    empty = torch.zeros(0)
    dist.all_reduce(empty)
    store = dist.distributed_c10d._get_default_store()
    store.set(f"name{rank}", f"rank {rank}")
    out["store"] = [store.get(f"name{r}").decode() for r in range(world)]
    out["count"] = store.add("count", 1)
    store.set("all", "1") if out["count"] == world else store.wait(["all"])
    large = torch.full((20000,), float(rank))  # 80 kB: state, not control flow
    dist.broadcast(large, 0)
    out["large"] = large[0].item()
    dist.barrier()
    return out


def record(worker: Worker) -> dict[str, Any]:
    out = init_script(worker)
    out["journal"] = worker.registry.journal.freeze()
    assert check_sum(worker) == 6.0  # not recorded any more
    assert worker.registry.journal.freeze() == out["journal"]
    return out


def replay(worker: Worker) -> dict[str, Any]:
    out = init_script(worker)
    out["unused"] = worker.registry.journal.unused()
    out["journal"] = worker.registry.journal.freeze()
    return out


def deviate(worker: Worker, how: str) -> str:
    """Replays, but does something that the dead rank did not do."""
    dist.init_process_group("gloo", timeout=LONG)
    dist.new_group([0, 2])
    try:
        if how == "shape":
            dist.broadcast(torch.zeros(4, dtype=torch.long), 0)
        elif how == "dtype":
            dist.broadcast(torch.zeros(3), 0)
        elif how == "operation":
            dist.barrier()
        elif how == "store":
            dist.distributed_c10d._get_default_store().get("unheard of")
        elif how == "more":
            init_calls(worker)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def init_calls(worker: Worker) -> None:
    flags = torch.zeros(3, dtype=torch.long)
    dist.broadcast(flags, 0)
    for _ in range(100):
        dist.barrier()


def huge_object(worker: Worker) -> Any:
    """An object of more than the journal keeps."""
    dist.init_process_group("gloo", timeout=LONG)
    box = ["x" * (2 << 20)] if worker.rank == 0 else [None]
    try:
        dist.broadcast_object_list(box, 0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return worker.registry.journal.freeze()


def late_groups(worker: Worker) -> dict[str, Any]:
    """Groups are created in iteration 2 (kept) and in the interrupted iteration 3; rank 1 dies and is replaced."""
    newcomer = worker.registry.solo
    dist.init_process_group("gloo", timeout=LONG)
    early = dist.new_group([0, 1])
    shortlived = dist.new_group()
    worker.registry.journal.freeze()
    kept: Any = None
    out: dict[str, Any] = {}

    def iteration(number: int) -> float:
        nonlocal kept
        if number == 2:
            dist.destroy_process_group(shortlived)  # a newcomer creates it, and no survivor has it any more
        if number >= 2 and kept is None:
            kept = dist.new_group([1, 2], group_desc="kept")
            out["kept id"] = kept.group_name if isinstance(kept, SwappableGroup) else None
        fresh = dist.new_group([0, 1, 2], group_desc="fresh") if number == 3 else None
        if number == 3 and worker.rank == 1 and not newcomer:
            worker.say("dying")
            worker.wait_for("never")
        total = check_sum(worker)
        if isinstance(kept, SwappableGroup):
            total += 100 * check_sum(worker, kept)
        if fresh is not None:
            total += 10000 * check_sum(worker, fresh)
            out["fresh id"] = fresh.group_name
        return total

    sealed: list[Any] = []
    if not newcomer:
        iteration(1)
        out["second"] = iteration(2)
        sealed = worker.registry.late_groups()
        worker.host.connect_store(60.0).set(f"sealed{worker.rank}", repr(sealed))
        out["interrupted"], _ = interrupted(lambda: iteration(3))
    else:
        import ast

        sealed = ast.literal_eval(worker.host.connect_store(60.0).get("sealed1").decode())
    worker.registry.make_late_groups(sealed)
    worker.regroup(1)
    out["third"] = iteration(3)
    out["late"] = [(item["name"], item["group_desc"]) for item in worker.registry.late_groups() if "name" in item]
    out["count"] = dist.distributed_c10d._world.group_count
    if worker.rank < 2:
        assert check_sum(worker, early) == 3.0
    return out


EARLY = {"objects": dist.broadcast_object_list, "scatter": dist.scatter_object_list}  # bound before anything is patched


def agree(worker: Worker, own: int, init_method: str | None) -> dict[str, Any]:
    """Ranks agree on what rank 0 draws (`own`: another number, of another length, in each run); rank 1 weighs."""
    where = {"init_method": init_method, "rank": worker.rank, "world_size": worker.world} if init_method else {}
    dist.init_process_group("gloo", timeout=LONG, **where)
    rank, world = worker.rank, worker.world
    seed = torch.tensor([own if rank == 0 else 0])
    dist.broadcast(seed, src=0)
    name: list[Any] = [f"run-{'x' * own}" if rank == 0 else None]
    EARLY["objects"](name, src=0)
    share: list[Any] = [None]
    EARLY["scatter"](share, [f"share {own} of {r}" for r in range(world)] if rank == 0 else None, src=0)
    everybody: list[Any] = [None] * world
    dist.all_gather_object(everybody, "o" * own)
    latest = torch.tensor(own)
    dist.all_reduce(latest, op=dist.ReduceOp.MAX)
    all_owns = [torch.zeros(1) for _ in range(world)]
    dist.all_gather(all_owns, torch.tensor([float(own)]))
    store = dist.distributed_c10d._get_default_store()
    store.set(f"from {rank}", "there")
    return {
        "seed": seed.item(),
        "name": name[0],
        "share": share[0],
        "everybody": everybody,
        "latest": latest.item(),
        "owns": [float(value) for value in all_owns],
        "store": [store.get(f"from {r}").decode() for r in range(world)],
        "journal": worker.registry.journal.freeze(),
    }


def weigh(worker: Worker, own: int, how: str) -> Any:
    """What each rank puts into a sum shows the state of its script."""
    dist.init_process_group("gloo", timeout=LONG)
    value = torch.full((3,), float(own))
    try:
        if how == "large":
            dist.broadcast(torch.full((20000,), float(own)), 0)  # put right by no journal: it is state
        if how == "reduce_scatter":
            dist.reduce_scatter(torch.zeros(3), [value, value])
        elif how == "all_to_all":
            dist.all_reduce(value.clone() * 0)
            dist.all_gather_into_tensor(torch.zeros(6), value)
            dist.gather(value, [value.clone(), value.clone()] if worker.rank == 1 else None, dst=1)
        else:
            dist.all_reduce(value)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return worker.registry.journal.freeze()
