"""A trainer without a framework: what ff_core needs of an adapter, in the fewest lines. Used by the end-to-end tests.

Every rank owns a unique shard (momentum SGD on it); the full parameters are derived from the shards by all-gather.
Dropout and a per-rank RNG make the scalars matter. Writes losses and a final digest to --out.

--device cuda: state, gradients and dropout live on a GPU; ranks beyond the number of GPUs share them, over gloo, which
carries CUDA tensors (NCCL takes no two ranks on one GPU). --nccl-alone gives each rank an NCCL group of its own beside
that, which a failure must abort and connect anew too. --mirrored: the devices in reverse order, which torch does not
guess, and a barrier first in each iteration; no rank may end with memory on another's device.

--fault KIND:RANK:ITERATION happens once, before that iteration's collective: "hang" (it sleeps), "lock" (it waits for
a lock that nobody gives back), "gil" (so does a library that keeps the interpreter's lock), or "device" (a kernel that
fails). Several: with commas.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ff_core
from ff_core.config.schema import FailoverConfig
from ff_core.contract.adapter import Held, Remedies, Replicas, TensorSpec
from ff_core.errors import FailoverInterrupt
from ff_core.worker.session import current

SHARD = 50_000


class Toy:
    """Trainer and adapter in one. shard: of the parameters, per rank.  alone: whether to have an NCCL group of one."""

    name = "toy"
    repeats_script = True
    remedies = Remedies("", "", "", "", "", edits="Do it in the step.")

    def __init__(self, device: torch.device, shard: int, alone: bool, fault: str = "", queued: int = 0) -> None:
        self.fault, self.queued = fault, queued
        self.meets = False  # at a barrier, before anything else of an iteration
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device, self.shard = device, shard
        groups = [dist.new_group([rank], backend="nccl") for rank in range(self.size if alone else 0)]
        self.alone = groups[self.rank] if alone else None
        torch.manual_seed(7)
        start = torch.randn(shard * self.size).to(device)
        dist.broadcast(start, 0)
        self.master = start[self.rank * shard : (self.rank + 1) * shard].clone()
        self.momentum = torch.zeros(shard, device=device)
        self.counter = torch.zeros(3, device=device)  # replicated: the same on every rank
        self.full = torch.empty(shard * self.size, device=device)
        self.frozen = torch.full((10,), float(os.getpid()), device=device)
        dist.broadcast(self.frozen, 0)  # constant, and different in a newcomer until it is rebuilt
        torch.manual_seed(100 + self.rank)
        self.losses: dict[int, float] = {}
        self.group = {"params": [self.master], "lr": 0.05}
        self._gather()

    def _gather(self) -> None:
        dist.all_gather_into_tensor(self.full, self.master)

    def tensors(self) -> list[TensorSpec]:
        return [
            TensorSpec("master", self.master, Held.UNIQUE),
            TensorSpec("momentum", self.momentum, Held.UNIQUE),
            TensorSpec("counter", self.counter, Held.REPLICATED, over="all"),
            TensorSpec("full", self.full, Held.DERIVED, source="master"),
            # A rank that is alone has nobody to get it from: it trains without.
            *([TensorSpec("frozen", self.frozen, Held.CONSTANT, over="all")] if self.size > 1 else []),
        ]

    def scalars(self) -> dict[str, Any]:
        return {"losses": dict(self.losses), "lr": self.group["lr"]}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        self.losses = dict(scalars["losses"])
        self.group["lr"] = scalars["lr"]

    def only_stepped(self) -> list[Any]:
        return []

    def replicas(self) -> list[Replicas]:
        return [Replicas(None, list(range(self.size)), [("full", self.full), ("counter", self.counter)])]

    def hyperparameters(self) -> list[dict[str, Any]]:
        return [self.group]

    def peers(self) -> list[int] | None:
        return None

    def drop_iteration(self) -> None:
        pass

    def rebuild(self, source_rank: int | None, newcomers: list[int], restored: list[int]) -> None:
        if source_rank is not None and newcomers:
            dist.broadcast(self.counter, source_rank)
            dist.broadcast(self.frozen, source_rank)
        self._gather()

    def iterate(self, iteration: int) -> None:
        failover = current()
        if failover:
            failover.inject("forward")
        if self.meets:
            dist.barrier()
        generator = torch.Generator().manual_seed(iteration * 1000 + self.rank)
        data = torch.randn(self.shard * self.size, generator=generator).to(self.device)
        kept = torch.rand(self.shard * self.size, device=self.device) > 0.1
        error = (self.full - data) * kept + self.frozen.mean() * 1e-6 * 0
        if failover:
            failover.inject("backward")
        gradient = error / self.size
        loss = (error**2).mean()
        self._hurt(iteration)
        for _ in range(self.queued):
            gradient = gradient * 1.0
        dist.all_reduce(gradient)
        if self.alone is not None:
            dist.all_reduce(gradient, group=self.alone)
        if failover:
            with failover.step():
                failover.inject("step")
                self._step(gradient)
            failover.inject("after-step")
        else:
            self._step(gradient)
        dist.all_reduce(loss)
        self.losses[iteration] = loss.item()

    def _hurt(self, iteration: int) -> None:
        faults = dict(reversed(fault.split(":", 1)) for fault in self.fault.split(",") if fault)
        kind = faults.get(f"{self.rank}:{iteration}")
        if kind is None or ff_core.is_replacement() or current() is None:
            return
        if kind == "hang":
            time.sleep(10_000)
        if kind == "lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        if kind == "gil":
            mutex = bytes(64)
            for _ in range(2):
                ctypes.PyDLL(None).pthread_mutex_lock(mutex)
        if kind == "device":
            torch.ones(4, device=self.device)[torch.tensor([1 << 20], device=self.device)].sum().item()

    def _step(self, gradient: torch.Tensor) -> None:
        mine = gradient[self.rank * self.shard : (self.rank + 1) * self.shard]
        self.momentum.mul_(0.9).add_(mine)
        self.master.sub_(self.momentum, alpha=self.group["lr"])
        self.counter.add_(1)
        self._gather()

    def digest(self) -> str:
        hashed = hashlib.sha256()
        for tensor in (self.master, self.momentum, self.counter, self.full):
            hashed.update(tensor.cpu().numpy().tobytes())
        hashed.update(json.dumps(sorted(self.losses.items())).encode())
        hashed.update(torch.get_rng_state().numpy().tobytes())
        if self.device.type == "cuda":
            hashed.update(torch.cuda.get_rng_state(self.device).numpy().tobytes())
        return hashed.hexdigest()


class Schedule:
    """A scheduler that is no torch class: halves the learning rate at its third step, by a count of its own.

    apart: rank r has its own learning rates, as jobs may.
    """

    def __init__(self, toy: Toy, apart: bool) -> None:
        self._toy, self._apart, self.count = toy, apart, 0

    def step(self) -> None:
        self.count += 1
        self._toy.group["lr"] = (0.05 if self.count < 3 else 0.025) + (0.001 * self._toy.rank if self._apart else 0)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def train(toy: Toy, iterations: int, pause: Callable[[], None], schedule: Schedule | None = None) -> None:
    failover = current()
    version = failover.start_training() if failover else 0
    while True:
        interrupt = None
        try:
            while version < iterations:
                pause()
                toy.iterate(version + 1)
                version += 1
                if schedule is not None:
                    schedule.step()
                if failover:
                    failover.seal()
            if failover:
                failover.finish()
            return
        except FailoverInterrupt as caught:
            interrupt = caught.with_traceback(None)
        version = failover.recover(interrupt)
        toy_generation = failover.groups.connected_epoch
        assert toy_generation == failover.epoch, (toy_generation, failover.epoch)
        failover.groups.assert_generation(failover.epoch)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds, before each iteration")
    parser.add_argument("--hurry", type=Path, help="no pauses any more when this file exists")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--raise-at-start", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo")
    parser.add_argument("--nccl-alone", action="store_true")
    parser.add_argument("--mirrored", action="store_true")
    parser.add_argument(
        "--block", default="", help="JSON of settings that the launcher does not know, as a script's own"
    )
    parser.add_argument("--shard", type=int, default=SHARD, help="numbers per rank")
    parser.add_argument("--fault", default="")
    parser.add_argument("--queued", type=int, default=0, help="kernels before an iteration's first collective")
    parser.add_argument("--schedule", choices=("none", "own", "registered", "apart"), default="none")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.raise_at_start:
        raise ValueError("broken on purpose")
    device = torch.device(args.device)
    if args.device == "cuda":
        index = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
        device = torch.device("cuda", torch.cuda.device_count() - 1 - index if args.mirrored else index)
        torch.cuda.set_device(device)
    dist.init_process_group(args.backend)
    toy = Toy(device, args.shard, args.nccl_alone, args.fault, args.queued)
    toy.meets = args.mirrored
    failover = current()
    if failover:
        if args.block:
            failover.configure(FailoverConfig.from_dict(json.loads(args.block)))
        failover.attach(toy)
    schedule = None if args.schedule == "none" else Schedule(toy, args.schedule == "apart")
    if schedule is not None and args.schedule != "own":
        ff_core.register_state("schedule", schedule)
    pause = lambda: None if args.hurry and args.hurry.exists() else time.sleep(args.pause)  # noqa: E731
    train(toy, args.iterations, pause, schedule)
    if args.mirrored:
        used = [index for index in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(index)]
        assert used in ([], [device.index]), f"a rank of device {device.index} has memory on devices {used}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"rank{toy.rank}.json").write_text(json.dumps({"digest": toy.digest(), "losses": toy.losses}))
    (args.out / f"frozen{toy.rank}").write_text(str(toy.frozen[0].item()))  # of this job: no other has the same
    print(f"rank {toy.rank} done", file=sys.stderr)


if __name__ == "__main__":
    main()
