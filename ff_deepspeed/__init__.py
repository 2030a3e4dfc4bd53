"""FFTrainer for DeepSpeed: a rank may die, the job goes on.

Switched on by `"ff_failover": {"enabled": true}` in the DeepSpeed configuration of a job that `fftrain run` starts.
Two lines of the training loop change to make every failure exact:

    for batches in ff_deepspeed.batches(engine, loader):
        with ff_deepspeed.iteration():
            ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ff_core.errors import UnsupportedError
from ff_deepspeed import hooks
from ff_deepspeed.client import client_state

__all__ = ["batches", "client_state", "iteration"]

hooks.install()


def batches(engine: Any, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[list[Any]]:
    """The batches of one iteration after the other, some of them again after a failure.

    engine: from deepspeed.initialize, or an object around it.  loader: a DataLoader, engine.training_dataloader, or
    anything that yields micro-batches in the same order on every start of the script.  limit: at most this many
    iterations; better than `break`: a death behind that costs all ranks their start, and the last iteration.

    Yields lists of gradient_accumulation_steps micro-batches; the last ones that do not fill an iteration are
    dropped. The body must train on all of them, inside `with ff_deepspeed.iteration():`. May be called again, e.g.
    for every epoch. An item without an optimizer step is allowed (a batch that all ranks skip). Raises FailoverError
    if the body makes a second step.
    """
    from ff_deepspeed import loop, protection, second, wrapped
    from ff_deepspeed.trainers import accelerate

    accelerate.whole_items(loader)
    if protection.current() is not None or not hasattr(engine, "gradient_accumulation_steps"):
        engine = wrapped.engine_in(engine)
    if limit is not None and (type(limit) is not int or limit < 0):
        raise UnsupportedError(f"batches(limit={limit!r}): allowed: a whole number >= 0, or None for no limit")
    found = protection.of(engine) or (protection.current() if second.of(engine) is not None else None)
    if found is not None and found.engine.gradient_accumulation_steps() != engine.gradient_accumulation_steps():
        raise UnsupportedError(
            f"gradient_accumulation_steps = {engine.gradient_accumulation_steps()} in this engine, "
            f"{found.engine.gradient_accumulation_steps()} in the other engine of this process: an iteration has the "
            "same micro-batches for all engines"
        )
    if found is None:
        return loop.plain(engine, loader, limit)
    return found.loop.items(loader, limit)


def iteration() -> AbstractContextManager[None]:
    """The body of one iteration. A failure inside ends it early, without an exception; the loop then repeats it."""
    from ff_core.worker.exact_loop import Iteration
    from ff_deepspeed import protection

    found = protection.current()
    return nullcontext() if found is None else Iteration(found.loop)
