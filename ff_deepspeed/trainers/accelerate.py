"""Accelerate: a loop of the user's own over a loader that `accelerator.prepare()` gave, with no change to the script.

| attribute                         | what happens there |
| ---                               | --- |
| Accelerator._prepare_deepspeed    | the engine is complete: a replacement's way is ff_deepspeed.trainers.passes |
| ... ._do_sync                     | in the exact loop only the count of micro-batches decides |
| ... .skip_first_batches           | a shortened loader counts as the loader that it was made of; also the function |
| ... .save, save_model, save_state | nothing while a replacement passes over what was done |
| torch.save                        | the same |
| PartialState.is_main_process, ... | the same: false. What the main process does there was done |
| DataLoaderShard.__iter__          | a replacement passes over the epochs that were over |
| DataLoaderDispatcher.__iter__     | noticed: it cannot feed a training that is resumed |
| SeedableRandomSampler.__init__    | its generator is there from the begin on |

`Accelerator.step` counts micro-batches and `GradientState.sync_gradients` says whether the next backward pass ends in a
step. An iteration that a failure ends early leaves both in its middle, so they are registered state.

A loader that accelerate has prepared says that it is at its end when its last batch is handed out. `batches()` takes
the micro-batches of an iteration at once, so in the last one that would come before the first of them: Accelerate would
step too early. An item of batches() is always whole, and there only the count decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ff_core import register_state
from ff_core.errors import FailoverError
from ff_core.worker.hooks import wrap
from ff_deepspeed import protection
from ff_deepspeed.trainers.passes import Passes

Original = Callable[..., Any]
_NAME = "accelerate"
_whole_items = False  # the script takes its batches from batches()


def install() -> None:
    """accelerate.accelerator has been imported. Once per process."""
    import accelerate
    from accelerate import data_loader, state
    from accelerate.accelerator import Accelerator

    wrap(Accelerator, "_prepare_deepspeed", _prepare_deepspeed)
    wrap(Accelerator, "_do_sync", _do_sync)
    wrap(Accelerator, "skip_first_batches", _method_skip_first_batches)
    for module in (accelerate, data_loader):
        wrap(module, "skip_first_batches", _skip_first_batches)
    for name in ("save", "save_model", "save_state"):
        wrap(Accelerator, name, _unless_passing)
    wrap(torch, "save", _unless_passing)
    for name in ("is_main_process", "is_local_main_process", "is_last_process"):
        setattr(state.PartialState, name, _not_while_passing(vars(state.PartialState)[name]))
    wrap(data_loader.DataLoaderShard, "__iter__", _iterate)
    wrap(data_loader.DataLoaderDispatcher, "__iter__", _dispatch)
    wrap(data_loader.SeedableRandomSampler, "__init__", _make_sampler)


def whole_items(loader: Any) -> None:
    """batches() is called with `loader`: from now on it hands out all micro-batches of an iteration at once.

    A prepared loader gets the generator of its sampler from rank 0 when its first batch is fetched, where no collective
    may be. It gets it here: from then on all ranks draw alike from it.
    """
    global _whole_items
    _whole_items = True
    if getattr(loader, "synchronized_generator", None) is not None and loader.rng_types == ["generator"]:
        from accelerate.data_loader import synchronize_rng_states

        synchronize_rng_states(loader.rng_types, loader.synchronized_generator)
        loader.rng_types = None


def base(loader: Any) -> Any:
    """The torch DataLoader in one that accelerate has prepared."""
    return getattr(loader, "base_dataloader", loader)


def same_number(loader: Any, shorter: Any) -> None:
    """`shorter` was made of `loader`, and gives what follows in it: its iterators are the same loader's."""
    number = vars(base(loader)).get("_ff_number")
    if number is not None:
        base(shorter)._ff_number = number


def passes() -> Passes | None:
    """The loop of this process's engine, if it is one of Accelerate's and the script does not call batches()."""
    found = protection.current()
    loop = None if found is None or found.loop.used else found.client.loop
    return loop if isinstance(loop, Passes) else None


def _prepare_deepspeed(original: Original, accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    before = protection.current()
    result = original(accelerator, *args, **kwargs)
    found = protection.current()
    if found is not None and found is not before:
        register_state(_NAME, AccumulationState(accelerator))
        found.client.loop = Passes(found)
    return result


def _do_sync(original: Original, accelerator: Any, *args: Any, **kwargs: Any) -> None:
    if not _whole_items:
        original(accelerator, *args, **kwargs)
        return
    accelerator.step += 1
    accelerator.gradient_state._set_sync_gradients(accelerator.step % accelerator.gradient_state.num_steps == 0)


def _skip_first_batches(original: Original, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
    shorter = original(dataloader, *args, **kwargs)
    same_number(dataloader, shorter)
    return shorter


def _method_skip_first_batches(original: Original, accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    return _skip_first_batches(functools.partial(original, accelerator), *args, **kwargs)


def _unless_passing(original: Original, *args: Any, **kwargs: Any) -> Any:
    found = protection.current()
    return None if found is not None and found.passing else original(*args, **kwargs)


def _not_while_passing(original: property) -> property:
    def value(state: Any) -> bool:
        found = protection.current()
        assert original.fget is not None
        return not (found is not None and found.passing) and bool(original.fget(state))

    return property(value, doc=original.__doc__)


def _iterate(original: Original, loader: Any) -> Any:
    found, number = protection.current(), vars(base(loader)).get("_ff_number")
    if found is None or found.loop.used or number is None:
        return original(loader)
    found.unmodified.pass_begins(number)
    loop = passes()
    return original(loader) if loop is None else loop.iterate(original, loader, number)


def _dispatch(original: Original, loader: Any) -> Any:
    loop = passes()
    return original(loader) if loop is None else loop.dispatched(original(loader))


def _make_sampler(original: Original, sampler: Any, *args: Any, **kwargs: Any) -> None:
    original(sampler, *args, **kwargs)
    if sampler.generator is None:  # as its first epoch would: a replacement that begins in a later one has one, too
        sampler.generator = torch.Generator(device=torch.get_default_device())
        sampler.generator.manual_seed(sampler.initial_seed)


class AccumulationState:
    """Of one Accelerator, as registered state. Raises FailoverError if it lacks what is to be saved."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        if not hasattr(accelerator, "step") or not hasattr(accelerator.gradient_state, "_set_sync_gradients"):
            raise FailoverError(
                "this release of accelerate keeps its count of micro-batches elsewhere than in Accelerator.step and "
                "GradientState.sync_gradients: it cannot be put back after a failure. Use release 1.15"
            )

    def state_dict(self) -> dict[str, Any]:
        accelerator = self._accelerator
        return {"step": accelerator.step, "sync_gradients": accelerator.gradient_state.sync_gradients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._accelerator.step = state["step"]
        self._accelerator.gradient_state._set_sync_gradients(state["sync_gradients"])
