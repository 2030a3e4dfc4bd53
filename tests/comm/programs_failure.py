"""Programs that are interrupted: by the death of a peer, or by a halt alone."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.distributed_c10d import _coalescing_manager

from ff_core.errors import FailoverInterrupt
from tests.comm.harness import Worker

LONG = timedelta(seconds=100)  # a survivor that needs this long was not interrupted


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


def interrupted(action: Callable[[], Any]) -> tuple[int | None, float]:
    """(epoch of the FailoverInterrupt that `action` raised or None, seconds it took)."""
    begin = time.monotonic()
    try:
        action()
    except FailoverInterrupt as interrupt:
        return interrupt.epoch, time.monotonic() - begin
    return None, time.monotonic() - begin


def check_sum(worker: Worker, group: Any = None) -> float:
    value = torch.tensor([float(worker.rank + 1)])
    dist.all_reduce(value, group=group)
    return value.item()


def survive_a_death(worker: Worker, loader_workers: int) -> list[Any]:
    """All reduce for ever; whoever is interrupted drops, regroups and reduces once more."""
    newcomer = worker.registry.solo
    dist.init_process_group("gloo", timeout=LONG)
    pair = dist.new_group([0, 2])
    everyone = dist.new_group()
    epoch, seconds, keep = 0, 0.0, None
    if not newcomer:
        if loader_workers:
            # Forked, as in a job: they inherit the connections. (Here the default would be children of the fork server,
            # which inherit nothing and outlive a killed rank.)
            loader = torch.utils.data.DataLoader(Items(), num_workers=loader_workers, multiprocessing_context="fork")
            keep = iter(loader)
            next(keep)
        assert check_sum(worker) == 6.0
        if worker.rank == 1:
            worker.say("ready")
            time.sleep(1000)
        work = dist.all_reduce(torch.ones(1), group=everyone, async_op=True)
        worker.say("ready")
        epoch, seconds = interrupted(lambda: check_sum(worker))
        again, _ = interrupted(lambda: check_sum(worker, pair))
        late, _ = interrupted(work.wait)
        assert epoch == again == late == 1, (epoch, again, late)
    worker.regroup(1)
    sums = [check_sum(worker), check_sum(worker, everyone)]
    if worker.rank != 1:
        sums.append(check_sum(worker, pair))
    del keep
    return [seconds, *sums]


def halted_everywhere(worker: Worker) -> dict[str, Any]:
    """Rank 0 waits in every way there is for a rank 1 that does nothing, until the halt."""
    dist.init_process_group("gloo", timeout=LONG)
    registry, out = worker.registry, {}
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64), bucket_cap_mb=0.001)
    waits: dict[str, Callable[[], Any]] = {
        "sync": lambda: dist.all_reduce(torch.ones(1)),
        "recv": lambda: dist.recv(torch.ones(1), 1),
        "recv from anyone": lambda: dist.recv(torch.ones(1)),
        "barrier": dist.barrier,
        "monitored barrier": lambda: dist.monitored_barrier(timeout=LONG),
        "object": lambda: dist.all_gather_object([None, None], "x"),
        "functional": lambda: functional.all_reduce(torch.ones(1), "sum", dist.group.WORLD) + 1,
        "future": lambda: dist.all_reduce(torch.ones(1), async_op=True).get_future().wait(),
        "batch": lambda: [w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.irecv, torch.ones(1), 1)])],
        "coalesced": lambda: coalesced(),
        "ddp": lambda: model(torch.ones(2, 64)).sum().backward(),
        "store": lambda: dist.distributed_c10d._get_default_store().get("nobody sets this"),
        "new group": lambda: dist.new_group([0, 1], timeout=LONG),
    }

    def coalesced() -> None:
        with _coalescing_manager():
            dist.all_reduce(torch.ones(1))

    for epoch, (name, wait) in enumerate(waits.items(), start=1):
        if worker.rank == 0:
            pending = dist.all_reduce(torch.ones(1), async_op=True) if name == "sync" else None
            worker.say(f"waiting {epoch}")
            got, seconds = interrupted(wait)
            out[name] = (got == epoch, seconds)
            if pending is not None:
                for method in ("wait", "is_completed", "result", "get_future", "is_success", "exception"):
                    out[f"old {method}"] = (interrupted(getattr(pending, method))[0] == epoch, 0.0)
                held = pending
        else:
            worker.say(f"waiting {epoch}")
            worker.wait_for(f"halt:{epoch}")
        worker.regroup(epoch)
        registry.assert_generation(epoch)
        assert check_sum(worker) == 3.0
        if worker.rank == 0:
            out["stale handle"] = (interrupted(held.wait)[0] == epoch, 0.0)
    return out


def waiting_thread(worker: Worker) -> dict[str, Any]:
    """A thread other than the main one is in a collective, and a hook in a backward pass is."""
    dist.init_process_group("gloo", timeout=LONG)
    out: dict[str, Any] = {}
    if worker.rank == 0:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(interrupted(lambda: dist.all_reduce(torch.ones(1)))))
        thread.start()
        leaf = torch.ones(3, requires_grad=True)
        product = leaf * 2
        product.register_hook(lambda grad: dist.all_reduce(grad.clone()))
        worker.say("waiting")
        out["backward"] = interrupted(lambda: product.sum().backward())
        thread.join(60)
        out["thread"] = found[0] if found else None
    else:
        worker.say("waiting")
        worker.wait_for("halt:1")
    worker.regroup(1)
    out["sum"] = check_sum(worker)
    return out


def cut_in_the_middle(worker: Worker, kind: str) -> tuple[int | None, float]:
    """Rank 1 freezes while a large message is under way in both directions, or in one."""
    dist.init_process_group("gloo", timeout=LONG)
    tensor = torch.ones(64 << 20)
    operation = {
        "all_reduce": lambda: dist.all_reduce(tensor, async_op=True),
        "future": lambda: dist.all_reduce(tensor, async_op=True),
        "send": lambda: dist.isend(tensor, 1) if worker.rank == 0 else dist.irecv(tensor, 0),
        "recv": lambda: dist.irecv(tensor, 1) if worker.rank == 0 else dist.isend(tensor, 0),
        "recv_any": lambda: dist.irecv(tensor) if worker.rank == 0 else dist.isend(tensor, 0),
    }[kind]
    check_sum(worker)
    worker.say("ready")
    work = operation()
    assert work is not None
    if worker.rank == 1:
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSTOP)
    return interrupted(work.get_future().wait if kind == "future" else work.wait)


def twenty_swaps(worker: Worker) -> list[Any]:
    """Descriptors and threads after 2 and after 20 generations; peers are healthy, operations are in flight."""
    dist.init_process_group("gloo", timeout=LONG)
    groups = [dist.new_group() for _ in range(5)]
    counts = []
    for epoch in range(1, 21):
        handle = dist.all_reduce(torch.ones(1), group=groups[0], async_op=True) if worker.rank == 0 else None
        worker.say("in")
        worker.wait_for(f"halt:{epoch}")
        if handle is not None:
            assert interrupted(handle.wait)[0] == epoch
        worker.regroup(epoch)
        sums = [check_sum(worker, group) for group in groups]
        assert sums == [3.0] * 5
        worker.registry.wait_closed()
        if epoch in (2, 20):
            # The listeners' backlog and dying builder threads need a moment; what stays is a leak.
            counts.append(
                settled(lambda: tuple(len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("fd", "task")))
            )
    return counts


def closed_by(worker: Worker) -> list[str]:
    """Names of the threads that let go of two inner groups, where closing overtakes the thread that dropped them."""
    start, closers = threading.Thread.start, []

    def overtake(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "ff-close":
            thread.join()

    dist.init_process_group("gloo", timeout=LONG)
    dist.new_group()
    check_sum(worker)
    watches = [
        weakref.ref(group.generation.inner, lambda _: closers.append(threading.current_thread().name))
        for group in worker.registry.groups()
        if group.generation is not None
    ]
    worker.say("ready")
    worker.wait_for("halt:1")
    with mock.patch.object(threading.Thread, "start", overtake):
        worker.registry.drop()
    assert [watch() for watch in watches] == [None, None]
    return closers


def settled(measure: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """The lowest value of `measure` over a second."""
    values = []
    for _ in range(20):
        values.append(measure())
        time.sleep(0.05)
    return min(values)


def dead_rendezvous(worker: Worker) -> list[Any]:
    """Rank 0 regroups in epoch 1, where nobody comes; epoch 2 is announced; both regroup there."""
    dist.init_process_group("gloo", timeout=LONG)
    pair = dist.new_group([0, 1])
    worker.say("up")
    worker.wait_for("halt:1")
    worker.registry.drop()
    got: tuple[int | None, float] = (None, 0.0)
    if worker.rank == 0:
        worker.host.epoch = 1
        worker.say("regrouping")
        got = interrupted(lambda: worker.registry.regroup(1))
    worker.wait_for("halt:2")
    worker.regroup(2)
    return [*got, check_sum(worker), check_sum(worker, pair)]


def no_failover(worker: Worker) -> str:
    """An error without any death: the original exception comes, after the host was asked."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=1))
    message = ""
    if worker.rank == 0:
        try:
            dist.recv(torch.ones(1), 1)
        except RuntimeError as error:
            message = str(error)
        assert len(worker.host.hints) == 1, worker.host.hints
        assert "programs_failure.py" in worker.host.hints[0]
        assert "no_failover" in worker.host.hints[0]
    assert worker.host.entered == worker.host.left > 0 or worker.rank == 1
    worker.say("done")
    worker.wait_for("end")
    return message


def user_timeout(worker: Worker) -> list[float]:
    """The timeouts a user gives hold, in every generation: the group's for collectives and receives, a wait's own."""
    dist.init_process_group("gloo", timeout=LONG)
    group = dist.new_group(timeout=timedelta(seconds=1))
    worker.host.verdict_s = 0
    seconds: list[float] = []

    def timed(action: Callable[[], Any]) -> None:
        begin = time.monotonic()
        try:
            action()
        except RuntimeError:
            seconds.append(time.monotonic() - begin)

    for epoch in (1, 2):
        if worker.rank == 0:
            timed(lambda: dist.all_reduce(torch.ones(1), group=group))
            timed(lambda: dist.recv(torch.ones(1), 1, group=group))
            work = dist.irecv(torch.ones(1), 1)
            timed(partial(work.wait, timedelta(milliseconds=100)))
        worker.say("timed")
        worker.wait_for(f"halt:{epoch}")
        worker.regroup(epoch)
    return seconds
