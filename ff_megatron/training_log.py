"""Megatron's log goes on after a failure as if nothing had happened.

After a failure `train()` is entered again, and begins its log anew. What it has summed up since the last line is gone.
Its first iteration is logged as a job's first one is: out of turn, and without clearing the sums.

So the sums are part of every version. The first `training_log()` of a `train()` that was entered again gets them back,
with the time that the iterations since the last line have taken. The time that a failure took is not in it.

Lines and points that this process has written already are not written again. A replacement of the rank that writes the
log does not know what the dead rank had written after the version to which the job goes back.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

#: What training_log() and evaluate_and_print_results() write with.
_WRITERS = ("get_tensorboard_writer", "get_wandb_writer", "get_one_logger", "print_rank_last")
_TIMER = "interval-time"


class TrainingLog:
    """Of one training. training: the module megatron.training.training."""

    def __init__(self, training: ModuleType) -> None:
        self._training = training
        self._sums: dict[str, Any] = {}  # train()'s own dictionary
        self._put_back: dict[str, Any] | None = None
        self._iteration = 0  # the last that was logged, 0: none
        self._report_memory = True
        self._written = 0  # by this process: lines up to this iteration
        self._evaluated: set[str] = set()

    def save(self) -> dict[str, Any]:
        """Between two iterations: plain values and tensors."""
        return {
            "sums": dict(self._sums),
            "elapsed": self._elapsed(),
            "iteration": self._iteration,
            "report_memory": self._report_memory,
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go back to the version that `saved` is of; train() is entered after that."""
        self._put_back = saved if saved["iteration"] else None
        self._sums = {}
        self._iteration, self._report_memory = saved["iteration"], saved["report_memory"]

    def iteration(self, original: Callable[..., Any], bound: inspect.BoundArguments, device: torch.device) -> Any:
        """`training_log(...)`. device: the model's. Returns what it returns."""
        arguments = bound.arguments
        iteration, self._sums = arguments["iteration"], arguments["total_loss_dict"]
        saved, self._put_back = self._put_back, None
        if saved is not None:
            for key, value in saved["sums"].items():
                self._sums[key] = value.to(device) if torch.is_tensor(value) else value
            self._training.get_timers()(_TIMER, log_level=0).set_elapsed(saved["elapsed"])
        if self._iteration:
            arguments["is_first_iteration"], arguments["report_memory_flag"] = False, self._report_memory
        with self._written_once(iteration <= self._written):
            self._report_memory = original(*bound.args, **bound.kwargs)
        self._iteration, self._written = iteration, max(iteration, self._written)
        return self._report_memory

    def evaluation(self, original: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """`evaluate_and_print_results(...)`. Returns what it returns."""
        prefix = str(bound.arguments["prefix"])
        with self._written_once(prefix in self._evaluated):
            result = original(*bound.args, **bound.kwargs)
        self._evaluated.add(prefix)
        return result

    def _elapsed(self) -> float:
        """Seconds of the iterations since the last line. Megatron's own question for it waits for the device."""
        timer = self._training.get_timers()(_TIMER, log_level=0)
        return float(timer._elapsed + (time.time() - timer._start_time if timer._started else 0.0))

    @contextmanager
    def _written_once(self, already: bool) -> Iterator[None]:
        names = [name for name in _WRITERS if already and hasattr(self._training, name)]
        before = {name: getattr(self._training, name) for name in names}
        for name in names:
            setattr(self._training, name, lambda *given, **named: None)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self._training, name, value)
