"""train_tiny by a user who keeps much between iterations: in the data set, in get_batch(), in Megatron's arguments, in
a train_step() of their own, in what happens on a signal. All of it decides about the loss.

    fftrain run --nproc-per-node 2 --spares 1 remembers.py --bf16 ... --result out/result.json --ff-failover
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import train_tiny
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.training import get_args, pretrain

training = train_tiny.training
pending: deque[Any] = deque()
steps, cache = [0], dict[int, float]()
mean: float | None = None


class Samples(train_tiny.Samples):
    """Counts, draws, and keeps what it has made: items depend on those before them."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(2 * count, seed)
        self.generator, self.seen, self.sums = random.Random(seed), list[int](), np.zeros(3)

    def __getitem__(self, index: int) -> Any:
        self.loads = getattr(self, "loads", 0) + 1
        self.seen.append(index)
        self.sums[index % 3] += 1
        noise = cache.setdefault(index % 7, float(torch.rand(())))
        seed = self.loads + sum(self.seen) + int(100 * noise) + int(self.sums[0]) + self.generator.randrange(100)
        vocabulary, length = get_args().padded_vocab_size, get_args().seq_length
        return {"text": torch.randint(0, vocabulary, (length + 1,), generator=torch.Generator().manual_seed(seed))}


def datasets(counts: Any, vp_stage: int | None = None) -> Any:
    return Samples(counts[0], 1), Samples(counts[1], 2), Samples(counts[2], 3)


def get_batch(data_iterator: Any) -> torch.Tensor:
    """The micro-batch before the newest one."""
    pending.append(next(data_iterator))
    if len(pending) < 2:
        pending.append(next(data_iterator))
    text: torch.Tensor = tensor_parallel.broadcast_data(["text"], pending.popleft(), torch.int64)["text"]
    return text


def on_signal(number: int, frame: Any) -> None:
    pass


def forward_step(data_iterator: Any, model: Any) -> Any:
    global mean
    args, text = get_args(), get_batch(data_iterator)
    now = float(text.float().mean())
    mean = now if mean is None else 0.9 * mean + 0.1 * now
    args.my_steps = getattr(args, "my_steps", 0) + 1
    args.my_phases["easy" if args.my_steps % 3 else "hard"] += 1
    if args.curr_iteration == 2:
        signal.signal(signal.SIGUSR2, on_signal)
        os.umask(0o027)
    mask = os.umask(0o022)
    os.umask(mask)
    weight = 1 + 0.01 * (mean + args.my_steps + args.my_phases["hard"] + steps[0] + mask / 10)
    weight += 0.1 * (signal.getsignal(signal.SIGUSR2) is on_signal)
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    positions = torch.arange(args.seq_length).unsqueeze(0).expand_as(tokens)
    mask = torch.ones(1, 1, args.seq_length, args.seq_length).tril() < 0.5
    return model(tokens, positions, mask, labels=labels) * weight, train_tiny.loss_func


def model_provider(*args: Any, **kwargs: Any) -> Any:
    get_args().my_phases = {"easy": 0, "hard": 0}
    return train_tiny.model_provider(*args, **kwargs)


def main() -> None:
    torch.set_num_threads(1)
    original = training.train_step

    def train_step(*args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        return original(*args, **kwargs)

    training.train_step = train_step
    with record.recorded(training):
        pretrain(
            datasets, model_provider, ModelType.encoder_or_decoder, forward_step,
            extra_args_provider=train_tiny.extra_args,
        )  # fmt: skip
    args = get_args()
    path = Path(args.result).with_suffix(f".rank{args.rank}.json")
    kept = [steps, mean, args.my_steps, args.my_phases, sorted(cache.items()), len(pending), random.random()]
    path.write_text(json.dumps({**json.loads(path.read_text()), "kept": repr(kept)}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
