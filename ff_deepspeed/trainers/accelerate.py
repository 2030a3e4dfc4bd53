"""Accelerate: what `accelerator.accumulate()` and `accelerator.backward()` count beside the engine.

`Accelerator.step` counts micro-batches and `GradientState.sync_gradients` says whether the next backward pass ends in a
step. An iteration that a failure ends early leaves both in its middle, so they are state of every version.

A loader that accelerate has prepared says that it is at its end when its last batch is handed out. `batches()` takes
the micro-batches of an iteration at once, so in the last one that would come before the first of them: Accelerate would
step too early. An item of batches() is always whole, and there only the count decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ff_core import register_state
from ff_core.errors import FailoverError
from ff_core.worker.hooks import wrap
from ff_deepspeed import protection

_NAME = "accelerate"
_whole_items = False  # the script takes its batches from batches()


def install() -> None:
    """accelerate.accelerator has been imported. Once per process."""
    from accelerate.accelerator import Accelerator

    wrap(Accelerator, "_prepare_deepspeed", _prepare_deepspeed)
    wrap(Accelerator, "_do_sync", _do_sync)


def whole_items() -> None:
    """batches() is called: from now on it hands out all micro-batches of an iteration at once."""
    global _whole_items
    _whole_items = True


def _do_sync(original: Callable[..., Any], accelerator: Any, *args: Any, **kwargs: Any) -> None:
    if not _whole_items:
        original(accelerator, *args, **kwargs)
        return
    accelerator.step += 1
    accelerator.gradient_state._set_sync_gradients(accelerator.step % accelerator.gradient_state.num_steps == 0)


def _prepare_deepspeed(original: Callable[..., Any], accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    before = protection.current()
    result = original(accelerator, *args, **kwargs)
    found = protection.current()
    if found is not None and found is not before:
        register_state(_NAME, AccumulationState(accelerator))
    return result


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
