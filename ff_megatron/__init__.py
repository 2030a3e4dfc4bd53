"""FFTrainer for Megatron-LM and megatron-core: a rank may die, the job goes on.

With Megatron-LM's `pretrain()` it is switched on by `--ff-failover` among the arguments of a script that `fftrain run`
starts. The script does not change; `ff_megatron.hooks` says where FFTrainer looks in:

    fftrain run --nproc-per-node 8 --spares 1 pretrain_gpt.py <Megatron's arguments> --ff-failover

A loop of your own on megatron-core asks for it:

    (data,) = ff_megatron.protect(model, optimizer, scheduler, data=[data])
    for number in ff_megatron.iterations(1000):
        with ff_megatron.iteration():
            ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["iteration", "iterations", "protect"]


def protect(
    model: Any, optimizer: Any, scheduler: Any = None, *, timers: Any = None, data: Sequence[Any] = ()
) -> list[Any]:  # fmt: skip
    """Protect a training whose loop is the script's own. Model and optimizer are complete; nothing is trained yet.

    model: megatron-core's DistributedDataParallel, or a list of them (its chunks).  optimizer: of
    get_megatron_optimizer().  scheduler: megatron-core's OptimizerParamScheduler; leave any other out.  timers:
    megatron-core's Timers, if the loop uses them.  data: this rank's data iterators, which yield micro-batches in the
    same order on every start of the script. Instead of an iterator a function may be given that makes one:
    function(start) yields micro-batches from number `start` on. Of an iterator a replacement fetches again all that
    the dead rank had fetched.

    Returns iterators to be used instead of `data`, in its order: they can go back. Where `fftrain run` has not started
    the process they are plain ones, and a warning is logged. Raises UnsupportedError, which lists every obstacle.
    """
    from ff_megatron import own

    return own.protect(model, optimizer, scheduler, timers, data)


def iterations(total: int) -> Iterator[int]:
    """Numbers of iterations, 0 to total - 1, some of them again after a failure. After protect(), on every rank.

    The body trains once, inside `with ff_megatron.iteration():`. An item without an optimizer step is allowed, if all
    ranks skip it. May be called again. Raises FailoverError if the body makes a second step.
    """
    from ff_megatron import own

    found = own.current()
    return iter(range(total)) if found is None else found.items(total)


def iteration() -> AbstractContextManager[None]:
    """The body of one iteration. A failure inside ends it early, without an exception; the loop then repeats it."""
    from ff_core.worker.exact_loop import Iteration
    from ff_megatron import own

    found = own.current()
    return nullcontext() if found is None else Iteration(found)
