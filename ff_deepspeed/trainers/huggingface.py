"""Hugging Face's Trainer: its loop runs protected, with no change to the script.

The loop is an unmodified one (ff_deepspeed.unmodified): a survivor is interrupted inside a call of the engine, or of a
collective, and goes on there. A replacement runs the script up to `trainer.train()`. There it begins as with
`resume_from_checkpoint`, from memory: the Trainer's methods are replaced as follows.

| method of Trainer        | what happens there |
| ---                      | --- |
| train                    | a subclass with a loop of its own is refused |
| _init_training_state     | a replacement gets the epoch to go on in, and looks at no checkpoint |
| _prepare_for_training    | the engine is complete: its loop is known from now on; a replacement loads no checkpoint |
| _run_epoch               | where in the epoch the loop is; a replacement begins there |
| _finalize_training       | refused in a replacement with nothing left to train on; where the best weights are loaded
|                          | then, protection ends before |
| skip_first_batches       | a shortened loader counts as the loader that it was made of |

What is saved with each version: ff_deepspeed.trainers.trainer_loop. A replacement gets it when it joins, at its first
batch; until then its TrainerState is that of a training that begins.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, frames
from ff_core.worker import session
from ff_core.worker.hooks import wrap
from ff_deepspeed import protection
from ff_deepspeed.trainers.accelerate import same_number
from ff_deepspeed.trainers.trainer_loop import TrainerLoop

log = logging.getLogger("ff_deepspeed")
Original = Callable[..., Any]

#: What the hooks use of each method. Another list of parameters means another Trainer than the one that was tested.
_PARAMETERS = {
    "_init_training_state": ("num_train_epochs", "resume_from_checkpoint"),
    "_prepare_for_training": ("resume_from_checkpoint",),
    "_run_epoch": ("epoch", "epochs_trained", "steps_trained_in_current_epoch", "resume_from_checkpoint"),
    "_finalize_training": (),
    "_load_rng_state": (),
}
_OWN_LOOP = ("_inner_training_loop", *_PARAMETERS)
_MEMORY = "the memory of this job"  # stands where the Trainer expects a checkpoint's folder

OTHER_TRAINER = (
    "{line}: transformers {version}: its Trainer is not the one that FFTrainer knows ({what}): after a failure, a "
    "replacement could not be placed into its loop. Use transformers 5.24, or a loop of your own with Accelerate, or "
    'set "ff_failover": {{"enabled": false}} and rely on checkpoints'
)
OVERRIDDEN = (
    "{line}: {kind}.{name}() replaces the training loop of Hugging Face's Trainer, or a part of it that places a "
    "replacement: after a failure, FFTrainer could not find the way into that loop. Override training_step, "
    'compute_loss or a callback instead, or set "ff_failover": {{"enabled": false}} and rely on checkpoints'
)
AGAIN = "%s. After a failure the whole script starts again (--max-restarts)"
ALL_DONE = (
    "this process replaces a rank that died when its training was over: the other ranks have left trainer.train(), and "
    "what the script does after it cannot be repeated with them"
)


def install() -> None:
    """transformers.trainer has been imported. Once per process."""
    from transformers import trainer as module

    kind = module.Trainer
    if _difference(kind) is None:
        wrap(kind, "_init_training_state", _init_training_state)
        wrap(kind, "_prepare_for_training", _prepare_for_training)
        wrap(kind, "_run_epoch", _run_epoch)
        wrap(kind, "_finalize_training", _finalize_training)
        wrap(module, "skip_first_batches", _skip_first_batches)
        for name in _OWN_LOOP:
            getattr(kind, name)._ff_known = True
    wrap(kind, "train", _train)


def _difference(kind: type) -> str | None:
    """What of the class Trainer is not as expected, None if all is."""
    for name, wanted in {"_inner_training_loop": (), **_PARAMETERS}.items():
        method = getattr(kind, name, None)
        if method is None:
            return f"it has no {name}()"
        missing = [each for each in wanted if each not in inspect.signature(method).parameters]
        if missing:
            return f"{name}() has no parameter {missing[0]}"
    return None


def _place() -> dict[str, Any] | None:
    """In a replacement that goes on after the first step: what its loop's `save()` gave. Else None."""
    mine = session.current()
    if mine is None or not mine.is_newcomer:
        return None
    saved = mine.saved_scalars()
    if "call" in saved["data"] or saved["data"].get("start"):
        return None  # the exact loop finds its way by itself; before the first iteration the way is the script's own
    place: dict[str, Any] | None = saved["client"]["loop"]
    return None if place is None or "control" not in place else place


def _of(trainer: Any) -> TrainerLoop | None:
    loop: TrainerLoop | None = vars(trainer).get("_ff_loop")
    return loop


# ---- methods of Trainer ---------------------------------------------------------------------------------------------


def _train(original: Original, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    mine = session.current()
    words = _obstacle(type(trainer)) if mine is not None and _asks_for_protection(trainer) else None
    if mine is not None and words is not None:
        if not mine.may_restart:
            raise UnsupportedError(words)
        log.warning(AGAIN, words)
    return original(trainer, *args, **kwargs)


def _obstacle(kind: type) -> str | None:
    """Why a replacement could not be placed into the loop of this Trainer, None if it can."""
    import transformers

    difference = _difference(_trainer_class())
    if difference is not None:
        return OTHER_TRAINER.format(line=frames.line(), version=transformers.__version__, what=difference)
    for name in _OWN_LOOP:
        if not getattr(getattr(kind, name), "_ff_known", False):
            return OVERRIDDEN.format(line=frames.line(), kind=kind.__qualname__, name=name)
    return None


def _trainer_class() -> type:
    from transformers.trainer import Trainer

    kind: type = Trainer
    return kind


def _asks_for_protection(trainer: Any) -> bool:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    block = None if plugin is None else plugin.deepspeed_config.get("ff_failover")
    return isinstance(block, dict) and block.get("enabled") is True


def _init_training_state(original: Original, trainer: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
    given = _bound(original, trainer, args, kwargs)
    place = _place()
    if place is None:
        trained: tuple[int, int] = original(**given)
        return trained
    if codec.decode(place["control"])["should_training_stop"]:
        raise FailoverError(ALL_DONE)
    original(**{**given, "resume_from_checkpoint": None})
    return place["epoch"], place["updates"] * trainer.args.gradient_accumulation_steps


def _prepare_for_training(original: Original, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    given = _bound(original, trainer, args, kwargs)
    place = _place()
    result = original(**(given if place is None else {**given, "resume_from_checkpoint": None}))
    found = protection.of(trainer.model_wrapped)
    if found is not None and _obstacle(type(trainer)) is None:
        trainer._ff_loop = found.client.loop = TrainerLoop(trainer)
        if place is not None:
            found.go_on_from_memory()
    return result


def _run_epoch(original: Original, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    given = _bound(original, trainer, args, kwargs)
    loop = _of(trainer)
    if loop is None:
        return original(**given)
    steps = given["steps_trained_in_current_epoch"] if given["epoch"] == given["epochs_trained"] else 0
    updates = steps // trainer.args.gradient_accumulation_steps
    place = _place()
    if place is None:
        resumed = given["resume_from_checkpoint"] is not None and not trainer.args.ignore_data_skip
        loop.epoch_begins(given["epoch"], updates if resumed else 0, steps if resumed else 0)
        return original(**given)
    loop.enters(given["epoch"], updates, codec.decode(place["state"])["global_step"], place["shortened"])
    given["resume_from_checkpoint"] = _MEMORY if steps else None
    with _positioned_by_us(trainer, place["shortened"], steps):
        return original(**given)


def _finalize_training(original: Original, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    if _of(trainer) is not None and _place() is not None:
        raise FailoverError(ALL_DONE)
    found = protection.of(trainer.model_wrapped)
    if found is not None and trainer.args.load_best_model_at_end:
        found.unmodified.end()  # the weights that are loaded then belong to no iteration
    return original(trainer, *args, **kwargs)


@dataclasses.dataclass
class _Entering:
    """A replacement enters its first epoch. shortened: batches that the dead rank's loader left out."""

    trainer: Any
    shortened: int
    ignore_data_skip: bool


_entering: _Entering | None = None


def _skip_first_batches(original: Original, loader: Any, num_batches: int = 0) -> Any:
    """The batches are the same loader's: what was consumed of it is counted from the shortened one's begin."""
    count = num_batches
    if _entering is not None:
        _entering.trainer.args.ignore_data_skip = _entering.ignore_data_skip
        count = _entering.shortened
    if not count:
        return loader
    shorter = original(loader, count)
    same_number(loader, shorter)
    return shorter


@contextmanager
def _positioned_by_us(trainer: Any, shortened: int, steps: int) -> Iterator[None]:
    """The replacement's first epoch, after `steps` batches: the feed goes to the batch, and joining puts the random
    states back. The loop is told to skip batches, and its skipping is left out."""
    global _entering
    if not steps:
        yield
        return
    _entering = _Entering(trainer, shortened, trainer.args.ignore_data_skip)
    trainer.args.ignore_data_skip = False
    trainer._load_rng_state = functools.partial(_nothing_to_load, trainer)
    try:
        yield
    finally:
        _entering = None
        vars(trainer).pop("_load_rng_state", None)


def _nothing_to_load(trainer: Any, checkpoint: Any) -> None:
    """Instead of _load_rng_state(), once."""
    global _entering
    _entering = None
    del trainer._load_rng_state


def _bound(original: Original, trainer: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name, the trainer as `self`."""
    return dict(inspect.signature(original).bind(trainer, *args, **kwargs).arguments)
