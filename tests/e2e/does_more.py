"""A DeepSpeed script that does more than train one engine: what it adds has state that FFTrainer must find by itself.

usage: does_more.py --result FILE [--scheduler] [--second] [--teacher] [--clamp] [--edited] [--drift] [--counts]
                    [--tables] [--held] [--ignored]

--scheduler: a torch scheduler that the script steps itself.  --second: a second engine, trained in the same iteration.
--teacher: a model without an engine, in evaluation while ranks tell each other the loss.
--clamp: weights are clamped behind the step.  --edited: the block says so.
--counts: the models count their calls and draw numbers from a generator of their own, and every fourth call is another.
--tables: 2500 lists in variables, one of which counts.  --held: they are in a dict.  --ignored: the block says so.
--drift: the batches depend on the process, so a replacement's are others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import ff_deepspeed

parser = argparse.ArgumentParser()
parser.add_argument("--result", type=Path, required=True)
for name in ("scheduler", "second", "teacher", "clamp", "edited", "drift", "counts", "tables", "held", "ignored"):
    parser.add_argument(f"--{name}", action="store_true")
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled
config: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "steps_per_print": 1000000,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000000, "allgather_bucket_size": 1000000},
    "ff_failover": {
        "enabled": True,
        **({"weights_edited": True} if args.edited else {}),
        **({"unsaved_variables": "ignore"} if args.ignored else {}),
    },
}


class Samples(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * index + (os.getpid() if args.drift else 0))
        return torch.randn(16, generator=generator)


class Counting(nn.Module):
    """Its state is in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.noise = 0, torch.Generator().manual_seed(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x if self.calls % 4 else x + torch.rand(x.shape, generator=self.noise).to(x.dtype)


def make(outputs: int, rate: float) -> tuple[Any, Any]:
    first = [Counting()] if args.counts else []
    model = nn.Sequential(*first, nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, outputs))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0], optimizer


torch.manual_seed(5)
engine, optimizer = make(1, 1e-2)
second = make(16, 3e-2)[0] if args.second else None
scheduler = StepLR(optimizer, step_size=2, gamma=0.7) if args.scheduler else None
teacher = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)) if args.teacher else None
data = Samples()
loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, seed=3), drop_last=True)
dtype = next(engine.module.parameters()).dtype
losses = []
tables = [[n] for n in range(2500)] if args.tables else [[0]]
if args.tables and not args.held:
    globals().update((f"table_{number}", table) for number, table in enumerate(tables))
torch.manual_seed(100 + dist.get_rank())
for batches in ff_deepspeed.batches(engine, loader):
    with ff_deepspeed.iteration():
        for x in batches:
            x = x.to(dtype) * (1 + tables[-1][0] % 5)
            tables[-1][0] += 1 if args.tables else 0
            if second is not None:
                again = second(x)
                error = (again.float() - x.float()).square().mean()
                second.backward(error)
                second.step()
                x = again.detach()
                second.module.requires_grad_(False).eval()  # as a discriminator while the generator learns
            if teacher is not None:
                x = x + teacher(x.float()).to(dtype).detach()
            loss = engine(x).float().square().mean()
            engine.backward(loss)
            engine.step()
            if second is not None:
                second.module.requires_grad_(True).train()
            if scheduler is not None:
                scheduler.step()
            if args.clamp:
                with torch.no_grad():
                    for p in engine.module.parameters():
                        p.clamp_(-0.08, 0.08)
            if teacher is not None:
                teacher.eval()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            if teacher is not None:
                teacher.train()
            losses.append(mean.item())
digest = hashlib.sha256()
for one in (engine, second):
    for p in one.module.parameters() if one is not None else ():
        digest.update(p.detach().float().numpy().tobytes())
rate = optimizer.param_groups[0]["lr"]
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(
    json.dumps({"losses": losses, "digest": digest.hexdigest(), "lr": rate, "steps": engine.global_steps})
)
