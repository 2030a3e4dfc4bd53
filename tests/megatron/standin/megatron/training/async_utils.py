"""The queue of saves that are written in the background, under the names of megatron.training.async_utils."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from .global_vars import get_args

_async_calls_queue: Any = None


def init_persistent_async_worker(rank: int, mp_mode: str = "spawn") -> None:
    global _async_calls_queue
    _async_calls_queue = AsyncCallsQueue(persistent=True)
    if hasattr(AsyncCallsQueue, "warmup_persistent_caller"):  # megatron-core 0.17 and newer
        AsyncCallsQueue.warmup_persistent_caller(rank, mp_mode=mp_mode)


def schedule_async_save(async_request: Any) -> None:
    _async_calls_queue.schedule_async_request(async_request)


def maybe_finalize_async_save(blocking: bool = False, terminate: bool = False) -> None:
    if not get_args().async_save:
        return
    if blocking and not is_empty_async_queue() and torch.distributed.get_rank() == 0:
        print("Unfinalized async checkpoint saves. Finalizing them synchronously now.", flush=True)
    _async_calls_queue.maybe_finalize_async_calls(blocking, no_dist=False)
    if terminate:
        _async_calls_queue.close()


def is_empty_async_queue() -> bool:
    return _async_calls_queue is None or _async_calls_queue.get_num_unfinalized_calls() == 0
