"""State that the script steps and nobody has named is found, saved and put back."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, SequentialLR, StepLR

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec, found


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been made yet."""
    for name in ("_made", "_stepped", "_before"):
        monkeypatch.setattr(found, name, {})
    monkeypatch.setattr(found, "_counts", Counter())


@pytest.fixture(autouse=True)
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    known: dict[str, Any] = {}
    found.watch(lambda: known)
    another_process(monkeypatch)
    monkeypatch.setattr(found, "_quiet", 1)
    yield known
    found.watch(dict)


class Script:
    """What a script makes: the same in a replacement."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.scheduler = StepLR(self.optimizer, step_size=2)

    def train(self) -> None:
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def values(self) -> list[Any]:
        state = self.optimizer.state_dict()
        moments = [torch.as_tensor(v).tolist() for p in state["state"].values() for v in p.values()]
        return [self.scheduler.last_epoch, state["param_groups"], moments, self.model.weight.tolist()]


def saved() -> Any:
    return codec.decode(codec.encode(found.collect()))


def replace(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The script in another process."""
    another_process(monkeypatch)
    return Script()


def test_what_steps_is_saved_and_a_newcomer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    assert found.collect() == {}, "nothing has stepped; making a scheduler is no step"
    found.begin()
    script.train()
    script.train()
    state = saved()
    assert sorted(state) == ["torch.optim.adam.Adam #1", "torch.optim.lr_scheduler.StepLR #1"]
    other = replace(monkeypatch)
    found.load(state)
    assert other.values() == script.values()
    script.train()
    other.train()
    assert other.values() == script.values()


def test_a_survivor_goes_back_before_the_first_step() -> None:
    script = Script()
    begin = copy.deepcopy(script.values())
    found.begin()
    script.train()
    found.load({})
    assert script.values()[:1] + script.values()[3:] == begin[:1] + begin[3:]
    assert script.optimizer.state_dict()["state"] == {}
    script.train()
    assert len(saved()) == 2, "found again"


def test_weights_that_were_switched_off_in_a_dropped_iteration_train_again() -> None:
    script = Script()
    found.begin()
    script.model.bias.requires_grad_(False)
    script.train()
    before = saved()
    script.model.weight.requires_grad_(False)  # interrupted here
    script.model.bias.requires_grad_(True)
    found.load(before)
    assert script.model.weight.requires_grad and not script.model.bias.requires_grad


def test_steps_of_the_framework_are_its_own() -> None:
    script = Script()
    found.begin()
    with found.framework_steps():
        script.train()
    assert found.collect() == {}


def test_what_the_user_has_registered_is_left_alone(watching: dict[str, Any]) -> None:
    script = Script()
    watching["scheduler"] = script.scheduler
    found.begin()
    script.train()
    assert sorted(found.collect()) == ["torch.optim.adam.Adam #1"]


class Own(StepLR):
    """A subclass whose step does not call torch's."""

    def step(self, epoch: int | None = None) -> None:
        self.last_epoch += 1


@pytest.mark.parametrize(
    "make",
    [
        lambda o: LambdaLR(o, lambda n: 1 / (n + 1)),
        lambda o: ReduceLROnPlateau(o, patience=0),
        lambda o: Own(o, 1),
        lambda o: SequentialLR(o, [StepLR(o, 1), StepLR(o, 2)], milestones=[2]),
    ],
)
def test_every_scheduler(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Any:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = make(optimizer)
        scheduler.optimizer._opt_called = True
        return scheduler

    def step(scheduler: Any) -> None:
        scheduler.step(1.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()

    scheduler = run()
    found.begin()
    for _ in range(3):
        step(scheduler)
    state, groups = saved(), copy.deepcopy(scheduler.optimizer.param_groups)
    assert len(state) == 1, "schedulers within a scheduler are a part of it"
    another_process(monkeypatch)
    other = run()
    found.load(state)
    other.optimizer.param_groups[0]["lr"] = groups[0]["lr"]  # the optimizer's own, with which it is saved
    step(other)
    step(scheduler)
    assert other.state_dict() == scheduler.state_dict() or str(other.state_dict()) == str(scheduler.state_dict())


def test_scaler_and_average(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1, 1)
    average = torch.optim.swa_utils.AveragedModel(model)
    found.begin()
    average.update_parameters(model)
    assert list(found.collect()) == ["torch.optim.swa_utils.AveragedModel #1"]
    assert int(saved()["torch.optim.swa_utils.AveragedModel #1"]["n_averaged"]) == 1


def test_not_made_in_the_newcomer(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    found.begin()
    script.train()
    state = saved()
    another_process(monkeypatch)
    with pytest.raises(FailoverError, match="has not made one before its training loop"):
        found.load(state)


def test_a_copied_object_is_found_too() -> None:
    script = Script()
    other = copy.deepcopy(script.optimizer)
    found.begin()
    other.step()
    assert list(found.collect()) == ["torch.optim.adam.Adam #2"]


def test_what_was_made_before_is_refused_by_name_and_line() -> None:
    script = Script()
    del found._names[script.optimizer]
    found.begin()
    with pytest.raises(UnsupportedError, match=r"test_found\.py:\d+: a torch\.optim\.adam\.Adam is stepped.*register"):
        script.optimizer.step()


def test_what_cannot_be_encoded_is_refused_by_name() -> None:
    class Odd(StepLR):
        pass

    script = Script()
    odd = Odd(script.optimizer, 1)
    odd.secret = object()  # type: ignore[attr-defined]
    found.begin()
    script.optimizer._opt_called = True  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match=r"Odd #1 is stepped.*\['secret'\].*object"):
        odd.step()


def test_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "MOST_BYTES", 10)
    script = Script()
    found.begin()
    with pytest.raises(UnsupportedError, match=r"Adam #1 is stepped.*at most 10 B"):
        script.train()


def test_room_for_what_may_step() -> None:
    script = Script()
    assert found.expected_bytes([]) > 4 * 8 * 4
    engines = [p.data for p in script.model.parameters()]
    assert found.expected_bytes(engines) == 1 << 12, "the scheduler alone: the optimizer's tensors are copied anyway"
    assert found.expected_bytes(engines[:1]) == found.expected_bytes([]), "it steps others, too"
