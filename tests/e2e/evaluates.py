"""A DeepSpeed script that evaluates by a loader with persistent processes, which draws a seed when it is gone through
first, and whose processes draw random numbers of their own.

usage: evaluates.py --result FILE [--usual] [--between]

--usual: the usual loop; else the exact one.  --between: after an epoch; else after every second step.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import torch.distributed as dist
from small import arguments, make_engine
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import ff_deepspeed

args = arguments("usual", "between")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layers(x), y)


class Noisy(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        x, y = data[index]
        return x + torch.randn(16), y


torch.manual_seed(5)
model = Net()
engine = make_engine(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
data = TensorDataset(torch.randn(48, 16), torch.randint(0, 4, (48,)))
torch.manual_seed(100 + dist.get_rank())
loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))
test = DataLoader(Noisy(), batch_size=4, num_workers=1, persistent_workers=True)
losses: list[str] = []
scores: list[str] = []


def train(x: torch.Tensor, y: torch.Tensor) -> None:
    loss = engine(x, y)
    engine.backward(loss)
    engine.step()
    losses.append(loss.item().hex())
    if len(losses) % 2 == 1 and not args.between:
        evaluate()


def evaluate() -> None:
    model.eval()
    with torch.no_grad():
        scores.extend(model(x, y).item().hex() for x, y in test)
    model.train()


if args.usual:
    ff_deepspeed.client_state(dict)
    engine.load_checkpoint("checkpoints-that-do-not-exist")
for _ in range(2):
    if args.usual:
        for batch in loader:
            train(*batch)
    else:
        for batches in ff_deepspeed.batches(engine, loader):
            with ff_deepspeed.iteration():
                for batch in batches:
                    train(*batch)
    if args.between:
        evaluate()
digest = hashlib.sha256()
for tensor in model.parameters():
    digest.update(tensor.detach().numpy().tobytes())
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(
    json.dumps({"losses": losses, "scores": scores, "digest": digest.hexdigest()})
)
