"""A DeepSpeed script in the usual loop, whose place is in no variable: it counts epochs by range() or in a generator,
takes a part of each epoch, counts on the engine, and ends after a number of steps. Its client state has nothing of it.

usage: around.py --result FILE MODE     MODE: epochs, forever, islice, zip, cycle, past-the-engine,
                                        thread (another one trains) or reader (another one reads ahead):
                                        these two have one epoch
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ff_deepspeed

parser = argparse.ArgumentParser()
parser.add_argument("--result", type=Path, required=True)
parser.add_argument("mode")
args = parser.parse_args()
deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # nothing is compiled
STEPS, PER_EPOCH = 11, 12 if args.mode in ("thread", "reader") else 4


class Net(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).square().mean()


torch.manual_seed(5)
model = Net(nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 1))
config: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "steps_per_print": 1000000,
    "zero_optimization": {"stage": 1},
    "ff_failover": {"enabled": True},
}
engine = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), config=config)[0]
count = 4 * PER_EPOCH * dist.get_world_size()
data = TensorDataset(torch.randn(count, 16, generator=torch.Generator().manual_seed(1)))
sampler: Any = DistributedSampler(data, seed=3)
loader = DataLoader(data, batch_size=4, sampler=sampler, drop_last=True)
torch.manual_seed(100 + dist.get_rank())
engine.smooth = 1.0
losses: dict[int, float] = {}


def train(x: torch.Tensor, weight: float = 1.0) -> bool:
    """Whether there is more to train."""
    step = engine.global_steps + 1
    factor = weight * (engine.smooth if step % 5 == 0 else 1.0)
    loss = engine(x if args.mode == "reader" else x * factor)  # a batch that was read ahead must be known again
    if args.mode == "past-the-engine":
        loss.backward()
    else:
        engine.backward(loss)
    engine.step()
    losses[step] = loss.item()
    engine.smooth = 0.5 * engine.smooth + loss.item()
    return bool(engine.global_steps < STEPS)


def forever() -> Iterator[torch.Tensor]:
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from (x for (x,) in loader)
        epoch += 1


def epochs() -> None:
    for epoch in range(100):
        sampler.set_epoch(epoch)
        for (x,) in loader:
            if not train(x):
                return


def parts(of: Callable[[], Iterator[Any]]) -> None:
    while True:
        for (x,), weight in of():
            if not train(x, weight):
                return


ff_deepspeed.client_state(dict)
engine.load_checkpoint("checkpoints-that-do-not-exist")
if args.mode in ("epochs", "past-the-engine"):
    epochs()
elif args.mode == "thread":
    trainer = threading.Thread(target=epochs)
    trainer.start()
    trainer.join()
elif args.mode == "reader":
    ahead: queue.Queue[torch.Tensor] = queue.Queue(2)
    threading.Thread(target=lambda: [ahead.put(x) for (x,) in loader], daemon=True).start()
    while train(ahead.get()):
        pass
elif args.mode == "forever":
    all(train(x) for x in forever())
elif args.mode == "islice":
    parts(lambda: ((item, 1.0) for item in itertools.islice(loader, 3)))
elif args.mode == "zip":
    parts(lambda: zip(loader, [1.0, 1.1, 1.2]))  # noqa: B905
else:
    cycle = itertools.cycle(loader)
    while train(next(cycle)[0]):
        pass

digest = hashlib.sha256()
for parameter in model.parameters():
    digest.update(parameter.detach().numpy().tobytes())
result = {"losses": losses, "digest": digest.hexdigest(), "smooth": engine.smooth}
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(json.dumps(result))
