"""The places in Megatron-LM where FFTrainer looks in: functions of megatron.training.training, replaced once.

| function                                | what happens there |
| ---                                     | --- |
| pretrain                                | --ff-* flags are added; at its end a rank waits until nobody needs it |
| arguments.add_megatron_arguments        | --ff-* flags, where arguments are parsed before pretrain (core_v0.18) |
| setup_model_and_optimizer               | unsupported jobs are refused, protection begins |
| load_checkpoint                         | a newcomer is answered from memory |
| build_train_valid_test_data_iterators   | a newcomer's data begins where the dead rank's stood; all can be rewound |
| build_pretraining_data_loader           | the same for each loader |
| train                                   | entered again after a failure |
| train_step, from train() on             | the iteration before it is complete: sealed |
| save_checkpoint                         | remembers the checkpoint; a final one is repeated after a failure |
| maybe_finalize_async_save               | the same for one that is written in the background |
| training_log                            | after a failure it goes on with its sums; no line is written twice |
| evaluate_and_print_results, print_datetime | at the end of pretrain they are repeated after a failure |
| schedules.forward_step, backward_step   | see ff_megatron.micro_batches |

All of these are looked up in their module whenever they are called. Arguments are bound by name, because signatures
differ between versions. Without --ff-failover Megatron's own code runs.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from ff_core.config import flags
from ff_core.errors import UnsupportedError
from ff_core.worker.boot import on_torch_distributed, when_worker
from ff_core.worker.hooks import wrap
from ff_megatron import micro_batches, protection
from ff_megatron.protection import Protection, guard

Original = Callable[..., Any]
_installed: set[str] = set()
_NEEDED = (
    "pretrain", "setup_model_and_optimizer", "load_checkpoint", "build_train_valid_test_data_iterators",
    "build_pretraining_data_loader", "train", "train_step", "training_log", "save_checkpoint",
    "save_checkpoint_and_time", "maybe_finalize_async_save", "evaluate_and_print_results", "print_datetime",
    "get_args", "get_timers",
)  # fmt: skip


def install() -> None:
    """Put the hooks in place. Idempotent; megatron.training.training has been imported. Raises UnsupportedError.

    An import hook calls it, or a patched Megatron-LM (ff_megatron.native); in a spare before it has a rank to play.
    """
    if not _installed:
        _install_in_megatron()
    when_worker(on_torch_distributed)


def _install_in_megatron() -> None:
    training = importlib.import_module("megatron.training.training")
    missing = [name for name in _NEEDED if not callable(getattr(training, name, None))]
    if missing:
        raise UnsupportedError(
            f"this version of Megatron-LM cannot be protected: megatron.training.training has no {', '.join(missing)}"
        )
    _installed.add("megatron")
    package = sys.modules["megatron.training"]
    if "extra_args_provider" not in inspect.signature(training.pretrain).parameters:
        wrap(importlib.import_module("megatron.training.arguments"), "add_megatron_arguments", _add_arguments)
    wrap(training, "pretrain", _pretrain)
    package.pretrain = training.pretrain  # type: ignore[attr-defined]
    wrap(training, "setup_model_and_optimizer", _setup)
    for name, hook in _OF_PROTECTED.items():
        wrap(training, name, guard.guarded(hook))
    micro_batches.install(guard)


def _bind(function: Callable[..., Any], args: Any, kwargs: Any) -> inspect.BoundArguments:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


def _pretrain(original: Original, *args: Any, **kwargs: Any) -> Any:
    bound = _bind(original, args, kwargs)
    if "extra_args_provider" in bound.arguments:
        theirs = bound.arguments["extra_args_provider"]

        def provider(parser: Any) -> Any:
            flags.add_arguments(parser)
            return parser if theirs is None else theirs(parser)

        bound.arguments["extra_args_provider"] = provider
    result = original(*bound.args, **bound.kwargs)
    found = protection.current()
    if found is not None:
        found.loop.end()
    return result


def _add_arguments(original: Original, parser: Any) -> Any:
    flags.add_arguments(parser)
    return original(parser)


def _setup(original: Original, *args: Any, **kwargs: Any) -> Any:
    protection.begin(sys.modules["megatron.training.training"])
    return original(*args, **kwargs)


# ---- of a protected training: one that is not runs `original` ------------------------------------------------------


def _load_checkpoint(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    return found.load_checkpoint(lambda: original(*args, **kwargs))


def _data_iterators(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    return found.data_iterators(lambda: original(*args, **kwargs))


def _data_loader(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    bound = _bind(original, args, kwargs)

    def make(consumed: int) -> Any:
        bound.arguments["consumed_samples"] = consumed
        return original(*bound.args, **bound.kwargs)

    return found.data.loader(make, bound.arguments["consumed_samples"])


def _train(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    given = _bind(original, args, kwargs).arguments
    return found.train(original, given, lambda: original(*args, **kwargs))


def _save_checkpoint(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    bound = _bind(original, args, kwargs)
    return found.loop.after(lambda: found.saves.save(original, bound))


def _finalize(found: Protection, original: Original, *args: Any, **kwargs: Any) -> None:
    bound = _bind(original, args, kwargs)
    found.loop.after(lambda: found.saves.finalize(original, bound))


def _training_log(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    return found.training_log(original, _bind(original, args, kwargs))


def _evaluate(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    bound = _bind(original, args, kwargs)
    return found.loop.after(lambda: found.log.evaluation(original, bound))


def _after(found: Protection, original: Original, *args: Any, **kwargs: Any) -> Any:
    return found.loop.after(lambda: original(*args, **kwargs))


_OF_PROTECTED = {
    "load_checkpoint": _load_checkpoint,
    "build_train_valid_test_data_iterators": _data_iterators,
    "build_pretraining_data_loader": _data_loader,
    "train": _train,
    "save_checkpoint": _save_checkpoint,
    "maybe_finalize_async_save": _finalize,
    "training_log": _training_log,
    "evaluate_and_print_results": _evaluate,
    "print_datetime": _after,
}
