"""What the loop of a Hugging Face Trainer keeps beside the engine, taken with every version."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import codec
from ff_deepspeed.trainers import plain

log = logging.getLogger("ff_deepspeed")

_OF_THE_PROCESS = ("is_local_process_zero", "is_world_process_zero", "log_history")
_DATA = ("train_dataset", "eval_dataset")
_CHUNK = 64  # entries of log_history that are encoded together

LEFT_OUT = (
    "the %s holds more than 1 MiB in %s: that is not saved with each iteration. If training changes it, register it: "
    "ff_core.register_state(NAME, obj) with state_dict() and load_state_dict(), before trainer.train()"
)


class TrainerLoop:
    """What the loop of one Trainer keeps beside the engine; `ff_deepspeed.client.LibraryLoop`."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._epoch = 0
        self._begun_at = 0  # global_step where the epoch began, or would have begun
        self._shortened = (
            0  # batches that the epoch's loader leaves out, as the job itself was resumed within the epoch
        )
        self._chunks: list[bytes] = []  # of log_history
        self._left_out: dict[int, list[str]] = {}
        for number, obj in enumerate(self._objects()):
            names = plain.large(obj, _DATA)
            self._left_out[number] = [*_DATA, *names]
            if names:
                log.warning(LEFT_OUT, type(obj).__qualname__, ", ".join(names))

    def save(self) -> dict[str, Any]:
        """The loop's state and its place, encoded where the script may go on changing it."""
        trainer = self._trainer
        return {
            "epoch": self._epoch,
            "updates": trainer.state.global_step - self._begun_at,
            "shortened": self._shortened,
            "state": codec.encode(_fields(trainer.state), "TrainerState"),
            "log": self._log(trainer.state.log_history),
            "control": codec.encode(_fields(trainer.control), "TrainerControl"),
            "objects": [plain.save(obj, self._left_out.get(n, _DATA)) for n, obj in enumerate(self._objects())],
        }

    def load(self, saved: dict[str, Any]) -> None:
        """In a replacement, at the place in the loop where `save()` was called in the dead rank."""
        trainer = self._trainer
        put_state(trainer.state, saved)
        for name, value in codec.decode(saved["control"]).items():
            setattr(trainer.control, name, value)
        objects = self._objects()
        if len(objects) != len(saved["objects"]):
            raise FailoverError(
                f"the Trainer of the replacement has {len(objects) - 1} callbacks, the dead rank's had "
                f"{len(saved['objects']) - 1}: add the same callbacks on every start, before trainer.train()"
            )
        for obj, attributes in zip(objects, saved["objects"], strict=True):
            plain.load(obj, attributes)

    def epoch_begins(self, epoch: int, updates: int, shortened: int) -> None:
        """updates: steps of the epoch that were done before.  shortened: batches that its loader leaves out."""
        self._epoch, self._begun_at = epoch, self._trainer.state.global_step - updates
        self._shortened = shortened

    def _objects(self) -> list[Any]:
        return [self._trainer, *self._trainer.callback_handler.callbacks]

    def _log(self, history: list[dict[str, Any]]) -> list[bytes]:
        """Entries are added and never changed: only the last chunk is encoded anew."""
        whole = len(history) // _CHUNK
        del self._chunks[whole:]
        for number in range(len(self._chunks), whole):
            self._chunks.append(codec.encode(history[number * _CHUNK : (number + 1) * _CHUNK], "log_history"))
        return [*self._chunks, codec.encode(history[whole * _CHUNK :], "log_history")]


def _fields(state: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(state)]
    return {name: getattr(state, name) for name in names if name not in _OF_THE_PROCESS}


def put_state(state: Any, saved: dict[str, Any]) -> None:
    """TrainerLoop.save()'s result into a TrainerState."""
    for name, value in codec.decode(saved["state"]).items():
        setattr(state, name, value)
    state.log_history[:] = [entry for chunk in saved["log"] for entry in codec.decode(chunk)]
