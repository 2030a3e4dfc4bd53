"""One file per rank, with a barrier before and after, and a tracker file, as the simplest of Megatron's formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import update_num_microbatches

from .global_vars import get_args


def save_checkpoint(
    iteration: int, model: Any, optimizer: Any, opt_param_scheduler: Any, num_floating_point_operations_so_far: Any,
    checkpointing_context: Any = None, **kwargs: Any,
) -> None:  # fmt: skip
    args = get_args()
    torch.distributed.barrier()
    directory = Path(args.save) / f"iter_{iteration:07d}"
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        "iteration": iteration,
        "consumed": (args.consumed_train_samples, args.skipped_train_samples, args.consumed_valid_samples),
        "flops": num_floating_point_operations_so_far,
        "model": [chunk.state_dict() for chunk in model],
        "scheduler": opt_param_scheduler.state_dict(),
    }
    torch.save(state, directory / f"rank{args.rank}.pt")
    torch.distributed.barrier()
    if args.rank == 0:
        (Path(args.save) / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    torch.distributed.barrier()


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
