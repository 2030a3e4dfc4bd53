#!/usr/bin/env python3
"""Trains a byte-level GPT on the text of Python's standard library with DeepSpeed: the demo's and the tests' job.

    fftrain run --nproc-per-node 4 --spares 1 scripts/train_gpt.py --deepspeed_config configs/deepspeed/zero1_bf16.json
    torchrun --nproc-per-node 4 scripts/train_gpt.py --deepspeed_config configs/deepspeed/zero1_bf16.json

The two differ in what happens when a process dies; losses and parameters are the same to the bit. Every rank's hashes
and losses go to --result, the job's losses to --loss-log.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpt.data import ByteWindows, ResumedSampler, text_file
from gpt.model import SIZES, Gpt
from torch.utils.data import DataLoader

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist

import ff_core
import ff_deepspeed


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a byte-level GPT with DeepSpeed.")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for DeepSpeed's launcher; always on")
    parser.add_argument("--deepspeed_config", type=Path, required=True, metavar="FILE", help="DeepSpeed's JSON file")
    parser.add_argument("--local_rank", type=int, default=-1, help="accepted for DeepSpeed's launcher; not used")
    parser.add_argument("--size", choices=sorted(SIZES), default="5m", help="of the model, in parameters")
    parser.add_argument("--sequence", type=int, default=128, help="bytes per sample")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps in all")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the data; must divide --steps")
    parser.add_argument("--micro-batch", type=int, help="samples per rank and micro-step, instead of the JSON file's")
    parser.add_argument("--gas", type=int, help="gradient accumulation steps, instead of the JSON file's")
    parser.add_argument(
        "--optimizer", choices=("adamw", "cpu_adam", "config"), default="adamw", help="config: the JSON file's"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="at the start; follows a cosine to zero")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-workers", type=int, default=0, help="data loading processes per rank")
    parser.add_argument(
        "--backend", choices=("nccl", "gloo"), help="of collectives, instead of DeepSpeed's; over gloo ranks share GPUs"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="on a GPU: only algorithms that give the same bits every time"
    )
    parser.add_argument("--data-cache", type=Path, metavar="DIR", help="where the text is kept (default: temporary)")
    parser.add_argument("--loss-log", type=Path, metavar="FILE", help="a line per step: step, mean loss, time")
    parser.add_argument("--result", type=Path, metavar="FILE", help="result.json becomes result.rank0.json, ...")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="start from the newest checkpoint there (only without fftrain)"
    )
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS", help="save one; 0: never")
    arguments = parser.parse_args(words)
    if arguments.checkpoint is not None and ff_core.is_fftrain_launched():
        parser.error('--checkpoint is for runs without fftrain; under it, use "persist" in the "ff_failover" block')
    if arguments.checkpoint_every and arguments.checkpoint is None:
        parser.error("--checkpoint-every needs --checkpoint DIR to save to")
    for name in ("steps", "epochs", "sequence"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: allowed: 1 or more")
    if arguments.steps % arguments.epochs:
        parser.error(f"--steps {arguments.steps} is not a multiple of --epochs {arguments.epochs}")
    return arguments


def prepare_device(arguments: argparse.Namespace) -> None:
    """Before anything is put on a GPU."""
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when a rank first multiplies
        torch.use_deterministic_algorithms(True)
    if arguments.backend is None:
        return
    devices = torch.cuda.device_count()
    if arguments.backend == "gloo" and devices:  # DeepSpeed takes the device of this number
        os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % devices)
    deepspeed.init_distributed(dist_backend=arguments.backend)


def make_engine(arguments: argparse.Namespace) -> deepspeed.DeepSpeedEngine:
    """Model, optimizer and schedule under DeepSpeed. Every rank builds the same model."""
    config = json.loads(arguments.deepspeed_config.read_text())
    if arguments.micro_batch:
        config["train_micro_batch_size_per_gpu"] = arguments.micro_batch
    if arguments.gas:
        config["gradient_accumulation_steps"] = arguments.gas
    seed_everything(arguments.seed)
    model = Gpt(SIZES[arguments.size], arguments.sequence, arguments.dropout)

    def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=arguments.steps)

    optimizer: torch.optim.Optimizer | None
    if arguments.optimizer == "config":
        optimizer = None
    elif arguments.optimizer == "cpu_adam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(model.parameters(), lr=arguments.lr, weight_decay=0.01)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.01)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), optimizer=optimizer, lr_scheduler=cosine, config=config
    )
    return engine


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_loader(
    arguments: argparse.Namespace, engine: deepspeed.DeepSpeedEngine
) -> tuple[DataLoader[Any], ResumedSampler]:
    """Just the samples that the steps of one epoch need, shuffled and split over the ranks."""
    micro_batch = engine.train_micro_batch_size_per_gpu()
    per_rank = arguments.steps // arguments.epochs * engine.gradient_accumulation_steps() * micro_batch
    data = ByteWindows(text_file(arguments.data_cache), arguments.sequence, per_rank * dist.get_world_size())
    sampler = ResumedSampler(data, shuffle=True, seed=arguments.seed)
    return DataLoader(data, micro_batch, sampler=sampler, num_workers=arguments.num_workers, drop_last=True), sampler


def train(arguments: argparse.Namespace, engine: deepspeed.DeepSpeedEngine) -> dict[int, float]:
    """Trains to the last step. Returns step -> mean loss over all ranks, for the steps this process has seen."""
    loader, sampler = make_loader(arguments, engine)
    per_epoch = arguments.steps // arguments.epochs
    log = open_loss_log(arguments)
    losses: dict[int, float] = {}
    samples = engine.gradient_accumulation_steps() * engine.train_micro_batch_size_per_gpu()  # of this rank in a step
    done = engine.global_steps  # more than 0 after load_checkpoint
    for epoch in range(done // per_epoch, arguments.epochs):
        sampler.set_epoch(epoch)
        sampler.skip = max(0, done - epoch * per_epoch) * samples
        for batches in ff_deepspeed.batches(engine, loader):
            with ff_deepspeed.iteration():
                mean = torch.zeros((), device=engine.device)
                for x, y in batches:
                    loss = engine(x.to(engine.device), y.to(engine.device))
                    engine.backward(loss)
                    engine.step()
                    mean += loss.detach() / len(batches)
                dist.all_reduce(mean)
                step = engine.global_steps
                losses[step] = mean.item() / dist.get_world_size()
                if log is not None:
                    line = {"step": step, "loss": losses[step], "t": time.time()}
                    os.write(log, (json.dumps(line) + "\n").encode())
                if arguments.checkpoint_every and step % arguments.checkpoint_every == 0:
                    engine.save_checkpoint(str(arguments.checkpoint), tag=f"step{step}")
    return losses


def open_loss_log(arguments: argparse.Namespace) -> int | None:
    """Rank 0 writes the job's losses. A replacement or restart goes on where the process before it stopped."""
    if arguments.loss_log is None or dist.get_rank() != 0:
        return None
    arguments.loss_log.parent.mkdir(parents=True, exist_ok=True)
    keep = ff_core.is_replacement() or has_checkpoint(arguments)
    return os.open(arguments.loss_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o644)


def has_checkpoint(arguments: argparse.Namespace) -> bool:
    return arguments.checkpoint is not None and (arguments.checkpoint / "latest").exists()


def digest(tensors: dict[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(name.encode())
        if isinstance(value, torch.Tensor):
            dense = value.detach().cpu().contiguous()
            total.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
            total.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def optimizer_state(engine: deepspeed.DeepSpeedEngine) -> dict[str, Any]:
    """What this rank's optimizer updates: masters (its partition under ZeRO), moments, step counts, learning rates."""
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    state: dict[str, Any] = {}
    for number, group in enumerate(base.param_groups):
        state[f"{number}.lr"] = group["lr"]
        # ZeRO-3 has its groups empty between steps.
        stepped = group["params"] or getattr(engine.optimizer, "fp32_partitioned_groups_flat", [])
        for index, parameter in enumerate(stepped):
            state[f"{number}.{index}"] = parameter
            for name, value in base.state.get(parameter, {}).items():
                state[f"{number}.{index}.{name}"] = value
    return state


def random_states() -> dict[str, torch.Tensor]:
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def write_result(arguments: argparse.Namespace, engine: deepspeed.DeepSpeedEngine, losses: dict[int, float]) -> None:
    rank = dist.get_rank()
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):  # whole under ZeRO-3, too
        parameters_sha256 = digest(dict(engine.module.named_parameters()))
    result = {
        "rank": rank,
        "world_size": dist.get_world_size(),
        "steps": engine.global_steps,
        "parameters_sha256": parameters_sha256,
        "optimizer_sha256": digest(optimizer_state(engine)),
        "rng_sha256": digest(random_states()),
        "losses": {str(step): loss for step, loss in losses.items()},
    }
    if arguments.result is not None:
        file = arguments.result.with_suffix(f".rank{rank}{arguments.result.suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
    if rank == 0:
        loss = losses.get(engine.global_steps, float("nan"))
        print(f"{engine.global_steps} steps, loss {loss:.6f}, parameters {parameters_sha256[:16]}", flush=True)


def main() -> None:
    arguments = parse_arguments()
    prepare_device(arguments)
    engine = make_engine(arguments)
    if has_checkpoint(arguments):
        engine.load_checkpoint(str(arguments.checkpoint))
    seed_everything(arguments.seed + 1000 * (1 + dist.get_rank()))  # dropout differs from rank to rank
    losses = train(arguments, engine)
    write_result(arguments, engine, losses)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
