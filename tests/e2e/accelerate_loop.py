"""Accelerate with its DeepSpeed plugin and a loop of one's own, around `accelerator.accumulate()`.

usage: accelerate_loop.py --deepspeed_config FILE --result FILE
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ff_deepspeed

parser = argparse.ArgumentParser()
parser.add_argument("--deepspeed_config", required=True)
parser.add_argument("--result", type=Path, required=True)
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled
accelerator = Accelerator(
    deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=args.deepspeed_config),
    # else accelerate takes a machine without a GPU for one process
    kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
)
torch.manual_seed(1)
data = TensorDataset(torch.randn(80, 8), torch.randn(80, 1))
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = DataLoader(data, batch_size=2, shuffle=True, drop_last=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
torch.manual_seed(100 + accelerator.process_index)
losses = {}
for batches in ff_deepspeed.batches(model, loader):
    with ff_deepspeed.iteration():
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses[model.micro_steps] = loss.item().hex()
found = {
    "steps": model.global_steps,
    "weights": {name: p.float().flatten().tolist() for name, p in model.module.named_parameters()},
}
accelerator.wait_for_everyone()
args.result.with_suffix(f".rank{accelerator.process_index}.json").write_text(json.dumps(found, sort_keys=True))
