"""A DeepSpeed script in the style of many: epochs in a function, meters of its own classes, a state that is exchanged.

usage: epochs.py --result FILE [--usual]

--usual: the usual loop; else the exact one. All that it keeps decides about its training, a little.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import json
import logging
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from small import arguments, make_engine, make_loader
from torch import nn

import ff_deepspeed

args = arguments("usual")
EPOCHS, STEPS = 2, 6


class Phase(enum.Enum):
    WARM, MAIN = 0.5, 1.0


class State(NamedTuple):
    step: int = 0
    last: float = 1.0


@dataclass(frozen=True)
class Best:
    loss: float
    step: int


@dataclass(slots=True)
class Stopper:
    best: Best | None = None
    bad: int = 0

    def update(self, loss: float, step: int) -> None:
        if self.best is None or loss < self.best.loss:
            self.best, self.bad = Best(loss, step), 0
        else:
            self.bad += 1


class Options(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class Meter:
    def __init__(self) -> None:
        self.window: deque[float] = deque(maxlen=3)
        self.all: list[float] = []

    def update(self, value: float) -> None:
        self.window.append(value)
        self.all.append(value)


class Logger:
    """Meters come when they are first used; the loop goes through a generator of its."""

    def __init__(self) -> None:
        self.meters: dict[str, Meter] = defaultdict(Meter)
        self.file = open(args.result.with_suffix(f".log{dist.get_rank()}"), "a")  # noqa: SIM115
        self.lines = 0

    def update(self, **named: float) -> None:
        for name, value in named.items():
            self.meters[name].update(value)

    def every(self, batches: Any) -> Iterator[Any]:
        for batch in batches:
            yield batch
            self.lines += 1
            self.file.write(f"{self.lines}\n")


class Average(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.updates, self.shadow = 0, {name: p.detach().clone() for name, p in model.named_parameters()}
        self.register_buffer("weight", torch.zeros(()))

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        self.weight.add_(1 / self.updates)  # type: ignore[operator]
        for name, p in model.named_parameters():
            self.shadow[name] = torch.lerp(self.shadow[name], p.detach(), 1 / (1 + self.updates))


class Trainer:
    global_step = 0

    class Clock:
        ticks = 0


torch.manual_seed(5)
model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
engine = make_engine(model, optimizer)
loader = make_loader(STEPS)
sampler: Any = loader.sampler

average = Average(model)
options, stopper, phase, counted = Options(scale=1.0), Stopper(), Phase.WARM, Counter(["x"])
ids, rates, noise, dice = (
    itertools.count(),
    itertools.cycle([0.9, 1.0, 1.1]),
    random.Random(4),
    np.random.default_rng(7),
)
table = dict.fromkeys(range(200), (0, 1.0))
state, best, history = State(), None, [Best(9.0, 0)]
log = logging.getLogger("epochs")


def scaled(x: torch.Tensor) -> torch.Tensor:
    scaled.calls += 1  # type: ignore[attr-defined]
    return x * (1 + 0.01 * scaled.calls)  # type: ignore[attr-defined]


scaled.calls = 0  # type: ignore[attr-defined]


def plain(x: torch.Tensor) -> torch.Tensor:
    return x


augment = plain


def train(logger: Logger, x: torch.Tensor, y: torch.Tensor) -> None:
    global state, best, phase, augment
    Trainer.global_step += 1
    Trainer.Clock.ticks += 2
    state = State(state.step + 1, state.last * 0.99)
    seen, weight = table[state.step % 3]
    table[state.step % 3] = (seen + 1, weight * 0.98)
    if state.step == 3:
        phase, augment = Phase.MAIN, scaled
    x = augment(x) * (state.last * weight * phase.value * options.scale * next(rates) + 0.01 * next(ids))
    x = x + 0.01 * (
        noise.random() + dice.random() + counted["x"] + Trainer.global_step + Trainer.Clock.ticks + stopper.bad
    )
    loss = nn.functional.cross_entropy(engine(x), y) * (1 + 0.01 * sum(logger.meters["loss"].window))
    loss = loss * (1 + 0.001 * average.updates + 0.01 * average.weight.item())
    engine.backward(loss)
    engine.step()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    logger.update(loss=mean.item(), more=state.last)
    stopper.update(mean.item(), state.step)
    if best is None or mean.item() < best["loss"]:
        best = OrderedDict(loss=mean.item(), state={name: p.detach().clone() for name, p in model.named_parameters()})
    history.append(replace(history[-1], loss=mean.item()))
    counted["x"] += 1
    options.scale *= 0.99
    average.update(model)


now = {"epoch": 0}


def one_epoch(epoch: int) -> float:
    logger, inner, now["epoch"] = Logger(), 0, epoch
    sampler.set_epoch(epoch)
    if args.usual:
        for x, y in logger.every(loader):
            inner += 1
            train(logger, x, y)
    else:
        for items in logger.every(ff_deepspeed.batches(engine, loader)):
            with ff_deepspeed.iteration():
                for x, y in items:
                    inner += 1
                    train(logger, x, y)
    return sum(logger.meters["loss"].all) + inner


def main() -> None:
    first = 0
    if args.usual:
        ff_deepspeed.client_state(lambda: dict(now))
        answer = engine.load_checkpoint("checkpoints-that-do-not-exist")[1]
        first = answer["epoch"] if answer else 0
    sums = [one_epoch(epoch) for epoch in range(first, EPOCHS)]
    digest = hashlib.sha256()
    for tensor in [*model.parameters(), *average.shadow.values(), *best["state"].values()]:  # type: ignore[index]
        digest.update(tensor.detach().numpy().tobytes())
    kept = [state, best["loss"], stopper.best, stopper.bad, phase, history, counted, table, Trainer.global_step]  # type: ignore[index]
    args.result.with_suffix(f".rank{dist.get_rank()}.json").write_text(
        json.dumps({"last": sums[-1], "digest": digest.hexdigest(), "kept": repr(kept), "calls": scaled.calls})  # type: ignore[attr-defined]
    )


main()
