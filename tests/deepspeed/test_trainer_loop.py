"""What the loop of a Hugging Face Trainer keeps beside the engine; with stand-ins, the real one is in tests/e2e."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, spaces
from ff_core.state.covered import Covered
from ff_deepspeed.trainers.trainer_loop import TrainerLoop


@dataclasses.dataclass
class State:
    global_step: int = 0
    max_steps: int = 1000
    logging_steps: int = 10
    eval_steps: int | None = None
    best_metric: float | None = None
    is_world_process_zero: bool = True
    log_history: list[dict[str, float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Control:
    should_save: bool = False


class Patience:
    def __init__(self) -> None:
        self.count = 0


@pytest.fixture(autouse=True)
def nothing_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "_of_libraries", {})


class Trainer(SimpleNamespace):
    pass


def trainer(callbacks: int = 1) -> Any:
    handler = SimpleNamespace(callbacks=[Patience() for _ in range(callbacks)])
    return Trainer(state=State(), control=Control(), callback_handler=handler, total=0.0)


def sent(saved: dict[str, Any]) -> dict[str, Any]:
    return codec.decode(codec.encode(saved, "loop"))


@pytest.mark.parametrize("entries", [0, 63, 64, 200])
def test_state_and_log_come_back(entries: int) -> None:
    theirs, mine = trainer(), trainer()
    loop, entered = TrainerLoop(theirs), TrainerLoop(mine)
    loop.epoch_begins(2, 0, 0)
    for number in range(entries):
        theirs.state.log_history.append({"loss": number / 3})
        loop.save()
    theirs.state.global_step, theirs.state.best_metric, theirs.control.should_save = 5, 0.25, True
    saved = sent(loop.save())
    assert (saved["epoch"], saved["updates"]) == (2, 5)
    mine.state.is_world_process_zero, log = False, mine.state.log_history
    log.append({"loss": 99.0})
    entered.load(saved)
    assert mine.state == dataclasses.replace(theirs.state, is_world_process_zero=False)
    assert mine.state.log_history is log and mine.control == theirs.control


def test_an_epoch_that_was_entered_in_its_middle_is_counted_from_its_begin() -> None:
    mine = trainer()
    loop = TrainerLoop(mine)
    loop.enters(3, 2, 14, 0)  # joined at step 14, the second of epoch 3
    mine.state.global_step = 15
    assert (loop.save()["epoch"], loop.save()["updates"]) == (3, 3)


def test_other_callbacks_are_an_error() -> None:
    saved = sent(TrainerLoop(trainer(2)).save())
    with pytest.raises(FailoverError, match="has 1 callbacks, the dead rank's had 2"):
        TrainerLoop(trainer(1)).load(saved)


def test_attributes_of_trainer_and_callbacks_are_looked_at_like_the_scripts_variables() -> None:
    mine = trainer(2)
    TrainerLoop(mine)
    labels = [space.label for space in spaces.found_spaces(1000, Covered()).spaces if space.always]
    assert labels == ["the Trainer.", "callback 0, Patience.", "callback 1, Patience."]


def test_a_log_that_is_too_long_for_every_version_is_refused() -> None:
    mine = trainer()
    loop = TrainerLoop(mine)
    loop.begins(True, True, False)
    assert len(loop.save()["room"]) == 100 * 256 and loop.save()["room"] is None
    mine.state.max_steps, mine.state.logging_steps = 100_000, 1
    with pytest.raises(UnsupportedError, match=r"test_trainer_loop\.py:\d+: .*100000 times .*logging_steps = 1"):
        loop.begins(True, True, False)
    mine.state.logging_steps = 10
    loop.begins(True, True, False)


def test_a_trainer_whose_batches_the_model_does_not_get_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"test_trainer_loop\.py:\d+: .*neither the memory nor .*GRPOTrainer"):
        TrainerLoop(trainer()).begins(True, False, False)
    TrainerLoop(trainer()).begins(True, False, True)


def test_a_trainer_without_a_loader_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"test_trainer_loop\.py:\d+: .*no torch DataLoader.*dispatch_batches"):
        TrainerLoop(trainer()).begins(False, True, False)
    TrainerLoop(trainer()).begins(False, True, True)  # a failure starts the script again: said, not refused
