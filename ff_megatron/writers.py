"""What writes checkpoints in the background for `--async-save`: a queue of saves under way, and a process for each.

| strategy            | who has it                               | its process                                    |
| ---                 | ---                                      | ---                                            |
| megatron-core's own | all versions                             | a forked one per save, or one that stays       |
| NVRx                | core_v0.17 and newer, if it is installed | (`--use-persistent-ckpt-worker`)               |

Both are used as `megatron.training.async_utils` has them, by names that they share. A save is numbered on every rank
alike, and is over when all ranks have said so. What the processes have written comes back through one queue of results
per rank, in order: after a save that was given up, an answer may lie in it that belongs to nothing.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from typing import Any

import psutil

_SAVES = "megatron.training.async_utils"
_RESULTS = (
    "megatron.core.dist_checkpointing.strategies.filesystem_async",
    "nvidia_resiliency_ext.checkpointing.async_ckpt.filesystem_async",
)


def _queue() -> Any:
    """The AsyncCallsQueue of this process; None before there is one."""
    return getattr(sys.modules.get(_SAVES), "_async_calls_queue", None)


def newest() -> int:
    """Number of the save that was begun last, -1 for none."""
    queue = _queue()
    return -1 if queue is None else int(queue.call_idx)


def waiting() -> list[int]:
    """Numbers of the saves that are not over, oldest first."""
    queue = _queue()
    return [] if queue is None else [call.idx for call in queue.async_calls]


def give_up(rank: int) -> None:
    """End all saves under way in this process, and their processes. Numbers begin anew, as in a replacement.

    No collectives. rank: this process's.
    """
    queue = _queue()
    if queue is not None:
        under_way = [call.async_caller for call in queue.async_calls]
        for caller in under_way:
            _end(caller)
        queue.async_calls.clear()
        queue.call_idx = -1
        if queue.persistent and under_way:
            queue.close(abort=True)
            queue.persistent_caller = None
            _start_again(rank)
    for name in _RESULTS:
        results = getattr(sys.modules.get(name), "_results_queue", None)
        if results is not None:
            sys.modules[name]._results_queue = results._manager.Queue()  # type: ignore[attr-defined]


def _end(caller: Any) -> None:
    """The process of `caller`, and those that it has started."""
    if caller.process is not None:
        with suppress(psutil.NoSuchProcess):
            writer = psutil.Process(caller.process.pid)
            writer.suspend()  # or it might start one more
            for child in writer.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            writer.resume()
        caller.close(abort=True)


def _start_again(rank: int) -> None:
    """A process that stays is started as Megatron does it, with the priorities that the arguments ask for."""
    init = sys.modules[_SAVES].init_persistent_async_worker
    init(*([rank] if inspect.signature(init).parameters else []))
