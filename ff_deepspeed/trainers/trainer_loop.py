"""What the loop of a Hugging Face Trainer keeps beside the engine, taken with every version.

Here: TrainerState with its log, TrainerControl, and where in the epochs the loop is. Attributes of the Trainer and of
its callbacks are looked at as the script's own variables are (ff_core.state.spaces).
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, frames, spaces
from ff_core.units import format_bytes

log = logging.getLogger("ff_deepspeed")

_OF_THE_PROCESS = ("is_local_process_zero", "is_world_process_zero", "log_history")
_DATA = frozenset({"train_dataset", "eval_dataset"})  # they go on by themselves
_CHUNK = 64  # entries of log_history that are encoded together
_ENTRY_BYTES = 256  # of one, encoded
_MOST_LOG_BYTES = 16 << 20  # it is a part of every version

NO_LOADER = (
    "{line}: the batches of this Trainer come from no torch DataLoader of this process: after a failure a replacement "
    "could not find its batch again. For an iterable data set set accelerator_config={{'dispatch_batches': False}} in "
    "TrainingArguments; let get_train_dataloader() return a torch DataLoader"
)
UNSEEN = (
    "{line}: what this Trainer gives to its model has neither the memory nor the values of a batch of its data loader, "
    "as where it generates what it learns from (TRL's GRPOTrainer): after a failure a replacement could not find its "
    'batch again. Give the model tensors of the batch; or set "ff_failover": {{"enabled": false}} and rely on '
    "checkpoints"
)
LONG_LOG = (
    "{line}: this training logs about {count} times (logging_steps = {steps}), and its log is saved with every "
    "version: {size}, more than {most}. Set a larger logging_steps in TrainingArguments"
)
OTHER_CALLBACKS = (
    "the Trainer of the replacement has {mine} callbacks, the dead rank's had {theirs}: add the same callbacks on "
    "every start, before trainer.train()"
)


class TrainerLoop:
    """What the loop of one Trainer keeps beside the engine; `ff_deepspeed.client.LibraryLoop`."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._line = frames.line()  # of trainer.train()
        self._epoch = 0
        self._begun_at = 0  # global_step where the epoch began, or would have begun
        self._shortened = 0  # batches that the epoch's loader leaves out: the job was resumed within the epoch
        self._chunks: list[bytes] = []  # of log_history
        self._room: bytes | None = None
        self._callbacks = list(trainer.callback_handler.callbacks)
        spaces.look_into("the Trainer.", trainer, _DATA)
        for number, callback in enumerate(self._callbacks):
            spaces.look_into(f"callback {number}, {type(callback).__qualname__}.", callback)

    def begins(self, fed: bool, seen: bool, may_restart: bool) -> None:
        """See LibraryLoop. Raises UnsupportedError."""
        if not fed or not seen:
            said = (UNSEEN if fed else NO_LOADER).format(line=self._line)
            if not may_restart:
                raise UnsupportedError(said)
            log.warning("%s. After a failure the whole script starts again (--max-restarts)", said)
        state = self._trainer.state
        count = sum(state.max_steps // every for every in (state.logging_steps, state.eval_steps) if every)
        size = count * _ENTRY_BYTES
        if size > _MOST_LOG_BYTES:
            shown = {"size": format_bytes(size), "most": format_bytes(_MOST_LOG_BYTES)}
            raise UnsupportedError(LONG_LOG.format(line=self._line, count=count, steps=state.logging_steps, **shown))
        self._room = bytes(size)  # there is room for twice the scalars of the first version

    def save(self) -> dict[str, Any]:
        """The loop's state and its place, encoded where the script may go on changing it."""
        trainer = self._trainer
        room, self._room = self._room, None
        return {
            "room": room,
            "epoch": self._epoch,
            "updates": trainer.state.global_step - self._begun_at,
            "shortened": self._shortened,
            "callbacks": len(self._callbacks),
            "state": codec.encode(_fields(trainer.state), "TrainerState"),
            "log": self._log(trainer.state.log_history),
            "control": codec.encode(_fields(trainer.control), "TrainerControl"),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """In a replacement, at the place in the loop where `save()` was called in the dead rank."""
        trainer = self._trainer
        if len(self._callbacks) != saved["callbacks"]:
            raise FailoverError(OTHER_CALLBACKS.format(mine=len(self._callbacks), theirs=saved["callbacks"]))
        for owner, values in ((trainer.state, saved["state"]), (trainer.control, saved["control"])):
            for name, value in codec.decode(values).items():
                setattr(owner, name, value)
        trainer.state.log_history[:] = [entry for chunk in saved["log"] for entry in codec.decode(chunk)]

    def epoch_begins(self, epoch: int, updates: int, shortened: int) -> None:
        """updates: steps of the epoch that were done before.  shortened: batches that its loader leaves out."""
        self._epoch, self._begun_at = epoch, self._trainer.state.global_step - updates
        self._shortened = shortened

    def enters(self, epoch: int, updates: int, step: int, shortened: int) -> None:
        """In a replacement, whose TrainerState is not yet at `step`, `updates` steps after the epoch's begin."""
        self._epoch, self._begun_at = epoch, step - updates
        self._shortened = shortened

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
