"""A job with the small model under any configuration, in the exact loop.

usage: small_script.py --config JSON --result FILE [--steps N] [--optimizer NAME] [--overflow JSON]
    [--two-devices]

--config: DeepSpeed's, the JSON itself.  --optimizer: see small_model.make_optimizer; "json": the configuration's.
--overflow: iterations and ranks whose loss is infinite, [[iteration, rank], ...]  --two-devices: see preload.py
"""

from __future__ import annotations

import argparse
import json
import os
import random
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import numpy as np
import small_loop
import torch
import torch.distributed as dist
from preload import preload, second_device
from small_model import Model, Noisy, make_optimizer

import ff_deepspeed
from scripts import overflow


def make_engine(arguments: argparse.Namespace) -> Any:
    random.seed(dist.get_rank())
    np.random.seed(dist.get_rank())
    torch.manual_seed(3)
    model = Model(frozen=True)
    optimizer = None if arguments.optimizer == "json" else make_optimizer({"optimizer": arguments.optimizer}, model)
    parameters = None if optimizer is not None else [p for p in model.parameters() if p.requires_grad]
    with second_device(arguments.two_devices):
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, model_parameters=parameters, config=arguments.config
        )
    torch.manual_seed(100 + dist.get_rank())
    return engine


def main() -> None:
    parser = small_loop.parser()
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--overflow", type=json.loads)
    parser.add_argument("--two-devices", action="store_true")
    arguments = parser.parse_args()
    preload()
    deepspeed.init_distributed()
    engine = make_engine(arguments)
    dtype = next(engine.module.parameters()).dtype
    data = Noisy(4 * engine.gradient_accumulation_steps() * arguments.steps)
    losses: dict[str, float] = {}
    for batches in ff_deepspeed.batches(engine, torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)):
        with ff_deepspeed.iteration():
            total = torch.zeros(1)
            for batch in batches:
                loss = torch.nn.functional.cross_entropy(engine(batch["x"].to(dtype)).float(), batch["y"])
                engine.backward(loss * overflow(arguments.overflow, engine, dist.get_rank()))
                engine.step()
                total += loss.detach()
            dist.all_reduce(total)
            losses[str(engine.global_steps)] = total.item()
    small_loop.write(arguments.result, engine, skipped=engine.skipped_steps, losses=losses)


main()
