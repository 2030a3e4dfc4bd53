"""What a version has of Megatron's own `train()` and of the script around it: ff_megatron.adapter.Training."""

from __future__ import annotations

from typing import Any

from ff_megatron import scalars
from ff_megatron.begun_once import BegunOnce
from ff_megatron.data import Data
from ff_megatron.loop import Loop
from ff_megatron.saves import Saves
from ff_megatron.training_log import TrainingLog


class OfPretrain:
    """Of one `pretrain()`. args: Megatron's."""

    def __init__(
        self, args: Any, data: Data, loop: Loop, log: TrainingLog, saves: Saves, once: BegunOnce
    ) -> None:  # fmt: skip
        self._args, self._data, self._loop, self._log, self._saves, self._once = args, data, loop, log, saves, once

    def save(self) -> dict[str, Any]:
        return {
            "counters": scalars.counters(self._args),
            "data": self._data.positions(),
            "loaded": self._data.loaded(),
            "samples": self._data.samples(),
            "place": self._loop.place(),
            "log": self._log.save(),
            "once": self._once.save(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        scalars.set_counters(self._args, saved["counters"])
        self._data.seek(saved["data"])
        self._data.put(saved["loaded"])
        self._loop.set_place(saved["place"])
        self._log.load(saved["log"])
        self._once.load(saved["once"])

    def drop(self) -> None:
        self._saves.give_up()

    def go_to(self, saved: dict[str, Any]) -> dict[str, Any]:
        """In a newcomer, before anything is built: counters and place of the version `saved`, the adapter's scalars.
        Returns what save() gave."""
        of_training: dict[str, Any] = saved["training"]
        scalars.set_counters(self._args, of_training["counters"])
        self._loop.set_place(of_training["place"])
        return of_training
