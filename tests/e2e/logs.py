"""A DeepSpeed script with a log of its own: a line of JSON for each step, with the step's number.

usage: logs.py --result FILE [--usual] [--writes] [--ahead]

--usual: the usual loop; else the exact one.  --writes: it writes into its batch, so an interrupted iteration is void,
and the script goes through its rest.  --ahead: it fetches a batch ahead. The log is FILE.rank<N>.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
import torch.distributed as dist
from small import arguments, make_engine, make_loader
from torch import nn

import ff_deepspeed

args = arguments("usual", "writes", "ahead")


class Net(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).square().mean()


torch.manual_seed(5)
model = Net(nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 1))
engine = make_engine(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
loader = make_loader(10, labels=False)
path = args.result.with_suffix(f".rank{dist.get_rank()}.jsonl")
log = path.open("a", buffering=1)  # a line is in the file when it is written: a killed process loses what it holds


def train(x: torch.Tensor) -> None:
    step = engine.global_steps + 1  # before engine(...)
    loss = engine(x)
    engine.backward(loss)
    if args.writes:
        x.mul_(2)
    log.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
    engine.step()
    log.write(json.dumps({"step": step, "loss": loss.item(), "norm": float(model[0].weight.norm())}) + "\n")


def batches() -> Iterator[torch.Tensor]:
    if not args.ahead:
        yield from (x for (x,) in loader)
        return
    held = None
    for (x,) in loader:
        if held is not None:
            yield held
        held = x
    if held is not None:
        yield held


if args.usual:
    ff_deepspeed.client_state(dict)
    engine.load_checkpoint("checkpoints-that-do-not-exist")
    for batch in batches():
        train(batch)
else:
    for items in ff_deepspeed.batches(engine, loader):
        with ff_deepspeed.iteration():
            for (batch,) in items:
                train(batch)
