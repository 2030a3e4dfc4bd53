"""Two of Megatron's formats: "torch", one file per rank with a barrier before and after, and "torch_dist", which is
megatron-core's own, also in the background. A tracker file names the latest iteration."""

from __future__ import annotations

import inspect
import shutil
import threading
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, mpu
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.num_microbatches_calculator import update_num_microbatches

from .async_utils import schedule_async_save
from .global_vars import get_args


def save_checkpoint(
    iteration: int, model: Any, optimizer: Any, opt_param_scheduler: Any, num_floating_point_operations_so_far: Any,
    checkpointing_context: Any = None, non_persistent_ckpt: bool = False, **kwargs: Any,
) -> None:  # fmt: skip
    args = get_args()
    save_dir = Path(args.save)
    if non_persistent_ckpt:
        save_dir = Path(args.non_persistent_global_ckpt_dir or save_dir / "non_persistent")
        _remove_old(save_dir)
    directory = save_dir / f"iter_{iteration:07d}"
    state = {
        "iteration": iteration,
        "consumed": (args.consumed_train_samples, args.skipped_train_samples, args.consumed_valid_samples),
        "flops": num_floating_point_operations_so_far,
        "scheduler": opt_param_scheduler.state_dict(),
    }

    def name_as_latest() -> None:
        if torch.distributed.get_rank() == 0:
            tracker = save_dir / "latest_checkpointed_iteration.txt"
            before = int(tracker.read_text()) if tracker.exists() else 0
            tracker.write_text(str(iteration))
            if args.save_retain_interval and before not in (0, iteration) and before % args.save_retain_interval:
                threading.Thread(target=shutil.rmtree, args=(save_dir / f"iter_{before:07d}", True)).start()

    if args.ckpt_format == "torch_dist":
        request = _save_distributed(state, directory, model, optimizer, checkpointing_context)
        if request is not None:
            request.add_finalize_fn(name_as_latest)
            schedule_async_save(request)
    else:
        torch.distributed.barrier()
        directory.mkdir(parents=True, exist_ok=True)
        torch.save({**state, "model": [chunk.state_dict() for chunk in model]}, directory / f"rank{args.rank}.pt")
    if not args.async_save:
        torch.distributed.barrier()
        name_as_latest()
    torch.distributed.barrier()


def _remove_old(save_dir: Path) -> None:
    if torch.distributed.get_rank() == 0:
        for folder in sorted(save_dir.rglob("iter_*"))[:-1]:
            shutil.rmtree(folder)


def _save_distributed(state: dict[str, Any], directory: Path, model: Any, optimizer: Any, context: Any) -> Any:
    """dist_checkpointing.save(...); returns the request of one that is to be written in the background."""
    args = get_args()
    group = mpu.get_data_parallel_group(with_context_parallel=True)
    metadata: dict[str, Any] = {
        "singleton_local_shards": False, "chained_optim_avoid_prefix": True, "dp_cp_group": group,
    }  # fmt: skip
    if args.use_distributed_optimizer:
        metadata["distrib_optim_sharding_type"] = "dp_reshardable"
    for number, chunk in enumerate(model):
        inner = chunk
        while not hasattr(inner, "sharded_state_dict") or hasattr(inner, "ddp_config"):
            inner = inner.module
        state["model" if len(model) == 1 else f"model{number}"] = inner.sharded_state_dict(metadata=metadata)
    state["optimizer"] = optimizer.sharded_state_dict(state, metadata=metadata)
    if torch.distributed.get_rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
    strategy = context.get("save_strategy")
    validate = strategy is None or not args.ckpt_assume_constant_structure
    if strategy is None:
        old = {"backend", "version"} <= set(inspect.signature(TorchDistSaveShardedStrategy).parameters)
        strategy = TorchDistSaveShardedStrategy(*(("torch_dist", 1) if old else ()))
        strategy.use_cached_ckpt_structure = args.ckpt_assume_constant_structure
        if args.ckpt_fully_parallel_save:
            strategy = FullyParallelSaveStrategyWrapper(strategy, group, args.ckpt_assume_constant_structure)
    context["save_strategy"] = strategy
    newer = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
    return dist_checkpointing.save(
        state, str(directory), strategy, async_sharded_save=args.async_save, validate_access_integrity=validate,
        **({"async_strategy": "mcore"} if newer else {}),
    )  # fmt: skip


def load_checkpoint(
    ddp_model: Any, optimizer: Any, opt_param_scheduler: Any, load_arg: str = "load", strict: bool = True, **kwargs: Any
) -> tuple[int, Any]:
    args = get_args()
    torch.distributed.barrier()
    tracker = Path(args.load) / "latest_checkpointed_iteration.txt"
    if not tracker.exists():
        return 0, 0
    directory = Path(args.load) / f"iter_{int(tracker.read_text()):07d}"
    state = torch.load(directory / f"rank{args.rank}.pt", weights_only=False)
    for chunk, saved in zip(ddp_model, state["model"], strict=True):
        chunk.load_state_dict(saved)
    optimizer.reload_model_params()
    opt_param_scheduler.load_state_dict(state["scheduler"])
    args.consumed_train_samples, args.skipped_train_samples, args.consumed_valid_samples = state["consumed"]
    update_num_microbatches(args.consumed_train_samples)
    torch.distributed.barrier()
    return state["iteration"], state["flops"]
