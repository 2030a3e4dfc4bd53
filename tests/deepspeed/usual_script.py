"""A training script in the usual resume style that knows nothing of FFTrainer except for one registered function.

usage: usual_script.py --config DS.json --result FILE [--steps N] [--epochs N] [--own-loss] [--destroy]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ff_deepspeed

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--steps", type=int, default=8, help="per epoch")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--own-loss", action="store_true", help="compute the loss outside the model")
parser.add_argument("--destroy", action="store_true", help="destroy the process group at the end")
parser.add_argument("--local_rank", type=int, default=-1)
args = parser.parse_args()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(128, 128),
            torch.nn.GELU(), torch.nn.Linear(128, 8),
        )  # fmt: skip

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.layers(x).float()
        return logits if y is None else torch.nn.functional.cross_entropy(logits, y)


torch.manual_seed(5)
model = Net()
config = json.loads(args.config.read_text())
gas = config.get("gradient_accumulation_steps", 1)
engine, _, _, _ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), config=config
)
dtype = next(model.parameters()).dtype
size = config["train_micro_batch_size_per_gpu"]
generator = torch.Generator().manual_seed(1)
count = size * gas * args.steps * dist.get_world_size()
data = TensorDataset(torch.randn(count, 32, generator=generator), torch.randint(0, 8, (count,), generator=generator))
sampler = DistributedSampler(data, shuffle=True)
loader = DataLoader(data, batch_size=size, sampler=sampler, drop_last=True)
losses: dict[int, float] = {}
epoch = 0


@ff_deepspeed.client_state
def where() -> dict[str, Any]:
    return {"epoch": epoch}


_, client = engine.load_checkpoint("checkpoints-that-do-not-exist")
first = client["epoch"] if client else 0
for epoch in range(first, args.epochs):
    sampler.set_epoch(epoch)
    total = torch.zeros(1)
    for number, (x, y) in enumerate(loader):
        if args.own_loss:
            loss = torch.nn.functional.cross_entropy(engine(x.to(dtype)), y)
        else:
            loss = engine(x.to(dtype), y)
        engine.backward(loss)
        engine.step()
        total += loss.detach() / gas
        if (number + 1) % gas == 0:
            dist.all_reduce(total)
            losses[engine.global_steps] = total.item()
            total = torch.zeros(1)
    with torch.no_grad():
        engine.eval()
        score = engine(data.tensors[0][:16].to(dtype)).sum()
        dist.all_reduce(score)
        engine.train()

sha = hashlib.sha256()
for p in model.parameters():
    sha.update(p.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
result = {"parameters": sha.hexdigest(), "steps": engine.global_steps, "losses": losses, "score": score.item()}
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(json.dumps(result))
if args.destroy:
    dist.destroy_process_group()
