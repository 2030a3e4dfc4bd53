"""What scripts of this folder have in common: their arguments, a DeepSpeed engine, and a loader."""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

BATCH = 4


def arguments(*switches: str) -> argparse.Namespace:
    """--result FILE, and --SWITCH for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path, required=True)
    for switch in switches:
        parser.add_argument(f"--{switch}", action="store_true")
    return parser.parse_args()


def make_engine(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Protected, with ZeRO 1 in fp32. No operator of DeepSpeed is compiled for it."""
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "steps_per_print": 1000000,
        "zero_optimization": {"stage": 1},
        "ff_failover": {"enabled": True},
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def make_loader(steps: int, *, labels: bool = True) -> DataLoader[Any]:
    """BATCH samples for each of `steps` steps of a rank: 16 random numbers, and a label from 0 to 3 if wanted. Random
    numbers of each rank's own begin here."""
    generator = torch.Generator().manual_seed(1)
    count = BATCH * steps * dist.get_world_size()
    columns = [torch.randn(count, 16, generator=generator)]
    if labels:
        columns.append(torch.randint(0, 4, (count,), generator=generator))
    data = TensorDataset(*columns)
    torch.manual_seed(100 + dist.get_rank())
    return DataLoader(data, batch_size=BATCH, sampler=DistributedSampler(data, seed=3), drop_last=True)
