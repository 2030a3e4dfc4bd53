"""The collectives that a script calls itself: noticed at torch.distributed's functions.

An unmodified loop that is interrupted in one of them (the mean of the loss, a barrier, a gathered metric) must go on
from there. So the functions of torch.distributed are replaced by ones that tell `ff_deepspeed.unmodified` of calls
made by the script; calls made by DeepSpeed or torch themselves go straight through. An asynchronous call is completed
before it returns, so that there is no moment at which only a work handle knows of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ff_core.errors import UnsupportedError
from ff_deepspeed import protection, source

NAMES = (
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object", "all_gather_single",
    "all_reduce", "all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier", "broadcast",
    "broadcast_object_list", "gather", "gather_object", "monitored_barrier", "recv", "reduce", "reduce_scatter",
    "reduce_scatter_single", "reduce_scatter_tensor", "scatter", "scatter_object_list", "send",
)  # fmt: skip


IN_LOADER = (
    "{name}() is called within the data loader, or the generator, that the training loop takes its batches from. The "
    "replacement of a dead rank goes through its data by itself, so nobody would answer it. Make the collective in the "
    "body of the loop (in the exact loop: inside `with ff_deepspeed.iteration():`) or before the loop; what ranks only "
    "have to agree on, a seed say, they can derive from the number of the epoch. For a loader that accelerate has "
    "prepared: give the torch DataLoader itself, with a DistributedSampler, to ff_deepspeed.batches()"
)


def install() -> None:
    """Replace the functions, in torch.distributed and in the module that defines them. Once per process."""
    from torch.distributed import distributed_c10d

    for name in NAMES:
        original = getattr(distributed_c10d, name, None)
        if original is not None:
            _replace(name, _noticed(name, original))
    _replace("destroy_process_group", _last_call(distributed_c10d.destroy_process_group))


def _replace(name: str, function: Callable[..., Any]) -> None:
    from torch.distributed import distributed_c10d

    setattr(distributed_c10d, name, function)
    setattr(dist, name, function)


def _noticed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def collective(*args: Any, **kwargs: Any) -> Any:
        found = protection.current()
        if found is not None and source.is_fetching():
            raise found.fail(UnsupportedError(IN_LOADER.format(name=name)))
        if found is None or not found.unmodified.listening:
            return original(*args, **kwargs)
        return found.unmodified.call(_complete(original), args, kwargs, True, lambda: _alone(original, args, kwargs))

    return collective


def _complete(original: Callable[..., Any]) -> Callable[..., Any]:
    def complete(*args: Any, **kwargs: Any) -> Any:
        work = original(*args, **kwargs)
        if hasattr(work, "wait") and hasattr(work, "is_completed"):
            work.wait()
            return _Done()
        return work

    return complete


def _alone(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The collective in an iteration that does not count: this rank's own contribution stands for everybody's."""
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    if original.__name__ in ("all_gather_object", "gather_object"):
        objects = given.get("object_list", given.get("object_gather_list"))
        if objects is not None:
            objects[:] = [given["obj"]] * len(objects)
    elif original.__name__ in ("all_gather", "gather"):
        for part in given.get("tensor_list", given.get("gather_list")) or []:
            part.copy_(given["tensor"])
    return _Done() if given.get("async_op") else None


class _Done:
    """The handle of an asynchronous collective that is complete."""

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True


def _last_call(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
        found = protection.current()
        if found is not None:
            found.unmodified.end()  # afterwards nothing could be repeated
        return original(*args, **kwargs)

    return destroy_process_group
