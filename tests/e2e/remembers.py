"""A DeepSpeed script whose own variables decide about its training, in both kinds of loop.

usage: remembers.py --result FILE [--usual] [--zip] [--large]

--usual: the usual loop; else the exact one.  --zip: its number comes from zip(range(...)), which nobody can set.
--large: an average that is too large to be saved in every iteration.
"""

from __future__ import annotations

import decimal
import functools
import hashlib
import itertools
import json
import random
from array import array
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from small import arguments, make_engine, make_loader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ff_deepspeed

args = arguments("usual", "zip", "large")
STEPS = 12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.outer = nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.outer(self.drop(self.inner(x).relu())), y)


class Curriculum:
    """Weighs the loss by how well it went so far."""

    def __init__(self) -> None:
        self.best, self.weight, self.history = float("inf"), 1.0, [0.0]

    def update(self, loss: float) -> None:
        self.history.append(loss)
        if loss >= self.best:
            self.weight *= 0.8
        self.best = min(self.best, loss)


torch.manual_seed(5)
model = Net()
engine = make_engine(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
loader = make_loader(STEPS)

calls = 0
curriculum = Curriculum()
average = {name: p.detach().clone() for name, p in model.named_parameters()}
lazy: dict[str, Any] = {}
noise = random.Random(4)
shift, velocity = torch.zeros(16), torch.zeros(16)
table = torch.zeros(3_000_000 if args.large else 1)
others = DataLoader(TensorDataset(torch.arange(20.0)), batch_size=4, shuffle=True)  # begun anew every five steps
checks = iter(others)
recent = array("d")
waiting: SimpleQueue[float] = SimpleQueue()
seen: WeakKeyDictionary[Curriculum, float] = WeakKeyDictionary({curriculum: 0.0})
following = functools.partial(next, itertools.cycle([0.99, 1.0, 1.01]))
seeds = np.random.SeedSequence(7)
model.inner.weight.scale = 1.0  # type: ignore[assignment]
losses: list[float] = []
factor = 1.0


@functools.lru_cache(maxsize=2)
def jitter(of: int) -> float:
    """Not the same when it is asked again, once it has been forgotten."""
    return 1 + 0.01 * noise.random()


def hidden(mean: float) -> float:
    """What Python does not show at once decides, too."""
    waiting.put(mean)
    last = waiting.get() if waiting.qsize() > 2 else 1.0
    seen[curriculum] += mean
    weight: Any = model.inner.weight
    weight.scale *= 1.01
    decimal.getcontext().prec = 3 + calls % 3
    spawned = np.random.default_rng(seeds.spawn(1)[0]).random()
    rounded = float(decimal.Decimal(mean) / 7)
    return (1 + 0.01 * (last + seen[curriculum] + spawned + rounded)) * following() * weight.scale * jitter(calls // 4)


def train(x: torch.Tensor, y: torch.Tensor, number: int) -> None:
    """One step, and what the script remembers of it."""
    global calls, shift, checks, factor
    calls += 1
    check = next(checks, None)
    if check is None:
        checks = iter(others)
        check = next(checks)
    x = x * (1 + 0.01 * check[0].sum() + sum(recent[-3:]))
    if number % 4 == 3:
        x = x * 1.5
    if calls % 5 == 0:
        x = x * noise.random()
    x = x * factor + shift
    loss = engine(x, y) * curriculum.weight
    engine.backward(loss)
    engine.step()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    losses.append(mean.item())
    factor = hidden(mean.item())
    curriculum.update(mean.item())
    recent.append(mean.item() / 10)
    with torch.no_grad():
        velocity.mul_(0.9).add_(mean)
        shift = 0.5 * shift + 0.01 * velocity
        for name, p in model.named_parameters():
            average[name].data.mul_(0.9).add_(p.data, alpha=0.1)
            lazy[name] = lazy.get(name, 0) * 0.5 + p.detach()
        table.add_(1)
    model.drop.p = min(0.05 * calls, 0.5)
    for group in engine.optimizer.param_groups:
        group["lr"] = 1e-2 / calls
    if calls == 10:
        model.inner.requires_grad_(False)


def main() -> None:
    inner = 0
    if args.usual:
        ff_deepspeed.client_state(dict)
        engine.load_checkpoint("checkpoints-that-do-not-exist")
        for number, (x, y) in enumerate(loader):
            inner += 1
            train(x * (1 + (inner % 3 == 0)), y, number)
        return
    batches = ff_deepspeed.batches(engine, loader)
    for number, items in zip(range(STEPS), batches) if args.zip else enumerate(batches):  # noqa: B905
        with ff_deepspeed.iteration():
            for x, y in items:
                inner += 1
                train(x * (1 + (inner % 3 == 0)), y, number)


main()
digest = hashlib.sha256()
for tensor in [*model.parameters(), *average.values(), *lazy.values(), shift, velocity]:
    digest.update(tensor.detach().numpy().tobytes())
args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(
    json.dumps({"losses": losses, "digest": digest.hexdigest(), "history": curriculum.history, "calls": calls})
)
