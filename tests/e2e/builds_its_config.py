"""A DeepSpeed script that builds its configuration itself: the launcher cannot know what is in it.

usage: builds_its_config.py --result FILE [--block NAME=JSON ...] [--of-rank R NAME=JSON]

--block: a field of "ff_failover".  --of-rank: a field that only rank R has.
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
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ff_deepspeed

parser = argparse.ArgumentParser()
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--block", nargs="*", default=[])
parser.add_argument("--of-rank", nargs=2)
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled

words = list(args.block)
if args.of_rank and os.environ["RANK"] == args.of_rank[0]:
    words.append(args.of_rank[1])
block: dict[str, Any] = {"enabled": True}
for word in words:
    name, _, text = word.partition("=")
    block[name] = json.loads(text)
config = {
    "train_micro_batch_size_per_gpu": 2,
    "steps_per_print": 1000000,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000000, "allgather_bucket_size": 1000000},
    "ff_failover": block,
}


class Net(torch.nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).float().square().mean()


torch.manual_seed(5)
model = Net(torch.nn.Linear(16, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
engine, _, _, _ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), config=config
)
dtype = next(model.parameters()).dtype
data = TensorDataset(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)))
loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data), drop_last=True)
ff_deepspeed.client_state(dict)
engine.load_checkpoint("checkpoints-that-do-not-exist")
for (x,) in loader:
    engine.backward(engine(x.to(dtype)))
    engine.step()

sha = hashlib.sha256()
for p in model.parameters():
    sha.update(p.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
result = {"parameters": sha.hexdigest(), "steps": engine.global_steps}
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(json.dumps(result))
