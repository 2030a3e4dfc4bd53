"""A DeepSpeed script in the usual resume style, which imports nothing of FFTrainer. It kills itself once, if told to.

usage: knows_nothing.py --config DS.json --result FILE [--steps N] [--kill RANK:STEP]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--kill", default="")
args = parser.parse_args()

# A copy of DeepSpeed would compile its operators again; this job can do without any.
deepspeed.ops.__compatible_ops__ = defaultdict(bool)


class Net(torch.nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).float().square().mean()


torch.manual_seed(5)
model = Net(torch.nn.Linear(16, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
config = json.loads(args.config.read_text())
engine, _, _, _ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), config=config
)
rank, size = dist.get_rank(), config["train_micro_batch_size_per_gpu"]
dtype = next(model.parameters()).dtype
generator = torch.Generator().manual_seed(1)
data = TensorDataset(torch.randn(size * args.steps * dist.get_world_size(), 16, generator=generator))
loader = DataLoader(data, batch_size=size, sampler=DistributedSampler(data), drop_last=True)
ours = sys.modules.get("ff_deepspeed")  # there if DeepSpeed itself imported it
if ours is not None:
    ours.client_state(dict)
engine.load_checkpoint("checkpoints-that-do-not-exist")
losses: dict[int, float] = {}
marker = args.result.with_name("killed")
for (x,) in loader:
    if args.kill == f"{rank}:{engine.global_steps}" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    loss = engine(x.to(dtype))
    engine.backward(loss)
    engine.step()
    losses[engine.global_steps] = loss.item()

sha = hashlib.sha256()
for p in model.parameters():
    sha.update(p.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
result = {"parameters": sha.hexdigest(), "steps": engine.global_steps, "losses": losses}
args.result.with_suffix(f".rank{rank}.json").write_text(json.dumps(result))
where = {"deepspeed": deepspeed.__file__, "ours": "ff_deepspeed" in sys.modules}
args.result.with_name(f"where{rank}.json").write_text(json.dumps(where))
