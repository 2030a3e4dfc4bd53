"""What a Megatron training has come to, for comparison: one file per rank, RESULT.rank<R>.json.

The loss of each iteration that this process finished, digests of parameters and optimizer state, counters and random
states at the end. With --loss-log FILE also a line per iteration, as soon as it is made.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

built: list[Any] = []
losses: dict[int, list[float]] = {}  # the loss and auxiliary ones; nothing on pipeline stages that know none
_args: list[Any] = []


@contextmanager
def recorded(training: ModuleType) -> Iterator[None]:
    """Around pretrain(): the script has an argument --result, and megatron.training.training is `training`."""
    training.setup_model_and_optimizer = _setup(training)  # type: ignore[attr-defined]
    training.training_log = _log(training.training_log)  # type: ignore[attr-defined]
    try:
        yield
    except SystemExit as leaving:
        if leaving.code:
            raise
        report(training.get_args())
        raise
    report(training.get_args())


def _setup(training: Any) -> Any:
    original = training.setup_model_and_optimizer

    def setup(*args: Any, **kwargs: Any) -> Any:
        _args[:] = [training.get_args()]
        result = original(*args, **kwargs)
        built[:] = result
        return result

    return setup


def _log(original: Any) -> Any:
    def log(loss_dict: Any, total: Any, learning_rate: Any, iteration: int, *args: Any, **kwargs: Any) -> Any:
        result = original(loss_dict, total, learning_rate, iteration, *args, **kwargs)
        losses[iteration] = [float(value) for value in loss_dict.values()]
        _append(float(loss_dict["lm loss"]) if "lm loss" in loss_dict else None, iteration)
        return result

    return log


def _append(loss: float | None, iteration: int) -> None:
    """One line per iteration in --loss-log, by the last rank (it is in the last pipeline stage)."""
    (args,) = _args
    if getattr(args, "loss_log", None) and args.rank == args.world_size - 1:
        with open(args.loss_log, "a") as file:
            file.write(json.dumps({"step": iteration, "loss": loss, "t": time.time()}) + "\n")


def digest(tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_groups() -> None:
    """Whoever holds a group holds a swappable one, and all of them are connected in the current epoch."""
    from megatron.core import mpu

    from ff_core.comm import SwappableGroup
    from ff_core.worker import session

    owner = session.current()
    if owner is None or not owner.training:
        return
    owner.groups.assert_generation(owner.epoch)
    model, optimizer, _ = built
    holders: list[Any] = [mpu, optimizer, *getattr(optimizer, "chained_optimizers", [])]
    for chunk in model:
        holders += [chunk, *chunk.modules(), *chunk.buffers, *chunk.bucket_groups]
        holders += [*chunk.expert_parallel_buffers, *chunk.expert_parallel_bucket_groups]
    holders += [value for holder in holders for value in vars(holder).values() if hasattr(value, "dp_cp")]
    groups = [value for holder in holders for value in vars(holder).values() if isinstance(value, dist.ProcessGroup)]
    assert len(groups) > 20, f"{len(groups)} groups found: the search looks in the wrong places"
    stale = [group for group in groups if not isinstance(group, SwappableGroup) or group.generation is None]
    assert not stale, f"{len(stale)} of {len(groups)} groups are not swappable or not connected"


def report(args: Any) -> None:
    from megatron.core import tensor_parallel
    from megatron.core.rerun_state_machine import get_rerun_state_machine

    check_groups()
    model, optimizer, scheduler = built
    inner = [o.optimizer for o in getattr(optimizer, "chained_optimizers", [optimizer])]
    pairs = [(o.state, p) for o in inner for group in o.param_groups for p in group["params"]]
    states = [value for state, p in pairs for _, value in sorted(state[p].items())]
    trackers = tensor_parallel.get_cuda_rng_tracker().get_states()
    scaler = getattr(optimizer.chained_optimizers[0], "grad_scaler", None) if args.fp16 else None
    generators = [torch.get_rng_state(), torch.cuda.get_rng_state(), *(trackers[name] for name in sorted(trackers))]
    found = {
        "rank": args.rank,
        "steps": args.consumed_train_samples // args.global_batch_size,
        "losses": losses,
        "parameters_sha256": digest(p for chunk in model for _, p in chunk.named_parameters()),
        "buffers_sha256": digest(b for chunk in model for _, b in chunk.named_buffers()),
        "optimizer_sha256": digest([*(p for _, p in pairs), *(state for state in states if torch.is_tensor(state))]),
        "scheduler": scheduler.num_steps,
        "lr": [float(g["lr"]).hex() for o in inner for g in o.param_groups],
        "scaler": repr(scaler.state_dict()) if scaler is not None else None,
        "samples": [args.consumed_train_samples, args.skipped_train_samples, args.consumed_valid_samples],
        "rerun": get_rerun_state_machine().current_iteration,
        "rng_sha256": digest(generators),
        "python": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
    }
    path = Path(args.result).with_suffix(f".rank{args.rank}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
