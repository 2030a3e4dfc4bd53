"""Accelerate with its DeepSpeed plugin and a loop of one's own around `accelerator.accumulate()`: epochs that do not
divide evenly, an evaluation and a file of weights after each. It knows nothing of FFTrainer.

usage: accelerate_loop.py --deepspeed_config FILE --result FILE [--accumulation N] [--stage N] [--asks] [--dispatch]
    [--exact]

--asks: the loop asks its loader with next().  --dispatch: rank 0 loads for all.  --exact: the batches come from
ff_deepspeed.batches()
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--deepspeed_config", required=True)
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("--accumulation", type=int, default=2)
parser.add_argument("--stage", type=int, default=1)
parser.add_argument("--asks", action="store_true")
parser.add_argument("--dispatch", action="store_true")
parser.add_argument("--exact", action="store_true")
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled
folder = args.result.parent / "accelerate"
settings = json.loads(Path(args.deepspeed_config).read_text())
settings["gradient_accumulation_steps"], settings["zero_optimization"]["stage"] = args.accumulation, args.stage
accelerator = Accelerator(
    deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
    # else accelerate takes a machine without a GPU for one process
    dataloader_config=DataLoaderConfiguration(dispatch_batches=args.dispatch),
    kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
)
torch.manual_seed(1)
data = TensorDataset(torch.randn(28, 8), torch.randn(28, 1))
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader, test = DataLoader(data, batch_size=2, shuffle=True), DataLoader(data, batch_size=7)
model, optimizer, loader, test = accelerator.prepare(model, optimizer, loader, test)
torch.manual_seed(100 + accelerator.process_index)


class Average:
    """Of the losses: saved with Accelerate's checkpoints."""

    def __init__(self) -> None:
        self.value = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


average = Average()
accelerator.register_for_checkpointing(average)
losses: list[str] = []
scores: list[str] = []
best, total = float("inf"), 0.0


def train_on(x: torch.Tensor, y: torch.Tensor) -> None:
    global total
    with accelerator.accumulate(model):
        loss = nn.functional.mse_loss(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    mean = accelerator.reduce(loss.detach().clone(), reduction="mean").item()
    losses.append(mean.hex())
    total += mean
    average.value = 0.9 * average.value + 0.1 * mean


def evaluate() -> float:
    model.eval()
    errors = []
    with torch.no_grad():
        for x, y in test:
            errors.append(accelerator.gather_for_metrics((model(x) - y).square()))
    model.train()
    return torch.cat(errors).mean().item()


def between(epoch: int) -> None:
    global best
    score = evaluate()
    scores.append(score.hex())
    best = min(best, score)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
        torch.save(accelerator.unwrap_model(model).state_dict(), folder / f"epoch{epoch}.pt")
        (folder / f"epoch{epoch}.json").write_text(json.dumps({"score": score, "total": total}))


def usual(epoch: int) -> None:
    if args.asks:
        iterator = iter(loader)
        for _ in range(len(loader)):
            train_on(*next(iterator))
    for step, batch in enumerate(() if args.asks else loader):
        train_on(*batch)
        if (epoch, step) in ((0, 3), (1, 4)):
            break  # the second one leaves an accumulation unfinished


def exact() -> None:
    import ff_deepspeed

    for batches in ff_deepspeed.batches(model, loader):
        with ff_deepspeed.iteration():
            for batch in batches:
                train_on(*batch)


for number in range(4):
    exact() if args.exact else usual(number)
    between(number)
accelerator.wait_for_everyone()
found = {
    "steps": model.global_steps,
    "weights": {name: p.float().flatten().tolist() for name, p in model.module.named_parameters()},
    "losses": losses,
    "scores": scores,
    "best": best,
    "total": total.hex(),
    "average": average.value.hex(),
    "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*"))},
}
accelerator.wait_for_everyone()
args.result.with_suffix(f".rank{accelerator.process_index}.json").write_text(json.dumps(found, sort_keys=True))
