"""Programs that wait until nothing of an ended operation writes any more."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _coalescing_manager

from tests.comm.harness import Worker
from tests.comm.programs_failure import LONG, check_sum


def still_writing(worker: Worker) -> float:
    """Rank 0 is halted while gloo copies what an all-gather has brought, and nobody waits for that. What its last
    number is in the end, when it is set after the halt."""
    dist.init_process_group("gloo", timeout=LONG)
    gathered = torch.zeros(64 << 20)
    with _coalescing_manager(async_ops=True):
        dist.all_gather_into_tensor(gathered, torch.full((32 << 20,), worker.rank + 1.0))
    if worker.rank == 1:
        worker.wait_for("end")
        return 0.0
    while gathered[0] == 0:
        time.sleep(0)
    worker.registry.halt(1)
    worker.registry.wait_quiet(1)
    worker.registry.drop()
    gathered[-1] = -1.0
    while not worker.registry.cut.lost():
        time.sleep(0.01)
    worker.say("over")
    return gathered[-1].item()


def nobody_receives(worker: Worker) -> bool:
    """Rank 1 freezes in the middle of a message that rank 0 has given up. Whether rank 0 finds that nothing is written
    any more: gloo never comes to the message's end, nor to that of the connection, and asks for it again and again."""
    dist.init_process_group("gloo", timeout=LONG)
    check_sum(worker)
    received = torch.zeros(64 << 20)
    worker.say("ready")
    if worker.rank == 1:
        dist.isend(received, 0)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSTOP)
    work = dist.irecv(received, 1)
    worker.wait_for("give up")
    del work, received
    worker.registry.halt(1)
    worker.registry.wait_quiet(1)
    return True
