"""A DeepSpeed script of several exact loops, with an evaluation after each that decides about the next one.

usage: loops.py --result FILE [--die RANK PLACE]... [--short | --breaks]

--die: that rank is killed, once, at PLACE: "evaluation-N" in the middle of the one after loop N, "mark-N" just before
loop N begins, "break-N" just before it is left; with "node-" before that, its agent is.
--short: loops are bounded to three iterations.  --breaks: they are left by `break` then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from small import make_engine, make_loader
from torch import nn

import ff_deepspeed

parser = argparse.ArgumentParser()
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--die", nargs=2, action="append", default=[], metavar=("RANK", "PLACE"))
parser.add_argument("--short", action="store_true")
parser.add_argument("--breaks", action="store_true")
args = parser.parse_args()
LOOPS, STEPS = 3, 4

torch.manual_seed(5)
model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
engine = make_engine(model, optimizer)
loader = make_loader(STEPS)
rank = dist.get_rank()
best, bad, evaluations, losses = float("inf"), 0, [], []
kept = args.result.with_suffix(".best.pt")


def dies(place: str) -> None:
    """Once in the job, whichever process plays the rank."""
    for what, pid in ((place, os.getpid()), (f"node-{place}", os.getppid())):
        died = args.result.with_suffix(f".{what}-{rank}")
        if [str(rank), what] in args.die and not died.exists():
            died.touch()
            os.kill(pid, signal.SIGKILL)


def left(loop: int) -> None:
    """Who is to be killed here waits until the other one is about to leave."""
    args.result.with_suffix(f".leaves-{loop}-{rank}").touch()
    while [str(rank), f"break-{loop}"] in args.die and len([*args.result.parent.glob(f"*.leaves-{loop}-*")]) < 2:
        time.sleep(0.01)
    dies(f"break-{loop}")


def evaluate(loop: int) -> None:
    global best, bad
    engine.eval()
    total = torch.zeros(2)
    with torch.no_grad():
        for number, (x, y) in enumerate(loader):
            noisy = x + 0.01 * torch.randn(x.shape)
            total += torch.stack([nn.functional.cross_entropy(engine(noisy), y), torch.rand(())])
            if number == 1:
                dies(f"evaluation-{loop}")
            mean = total.clone()
            dist.all_reduce(mean)
    engine.train()
    evaluations.append(mean.tolist())
    bad += mean[0].item() >= best
    if mean[0].item() < best:
        best = mean[0].item()
        if rank == 0:
            torch.save([p.detach().clone() for p in model.parameters()], kept)
    dist.barrier()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 / (1 + loop + bad + mean[1].item())


def train(loop: int) -> None:
    loader.sampler.set_epoch(loop)  # type: ignore[attr-defined]
    for items in ff_deepspeed.batches(engine, loader, limit=3 if args.short else None):
        with ff_deepspeed.iteration():
            for x, y in items:
                loss = nn.functional.cross_entropy(engine(x), y)
                engine.backward(loss)
                engine.step()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            losses.append(mean.item())
        if args.breaks and len(losses) == 3 * loop:
            left(loop)
            break


for loop in range(1, LOOPS + 1):
    dies(f"mark-{loop}")
    train(loop)
    evaluate(loop)
digest = hashlib.sha256()
for tensor in [*model.parameters(), *torch.load(kept)]:
    digest.update(tensor.detach().numpy().tobytes())
args.result.with_suffix(f".rank{rank}.json").write_text(
    json.dumps({"losses": losses, "evaluations": evaluations, "best": best, "digest": digest.hexdigest()})
)
