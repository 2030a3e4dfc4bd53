"""Objects that are known by their id(): another one may get it when they have gone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from ff_core.state import covered, registered
from ff_core.state.known import Known
from ff_core.state.variables import Variables


class Holder:
    """An object of the script's own class."""


def shared() -> list[Any]:
    return [Holder(), [1, 2], {"a": 1}, (1, (2, 3)), b"bytes", [torch.ones(1)], {"a": [Holder()]}, {1, 2}, range(9)]


@pytest.mark.parametrize("number", range(len(shared())))
def test_one_is_known_and_its_like_is_not(number: int) -> None:
    one, other = shared()[number], shared()[number]
    known = Known([one])
    assert one in known
    assert other is one or other not in known  # a constant may be the same object


@pytest.mark.parametrize("make", [Holder, lambda: [torch.ones(1)], lambda: (1, [torch.ones(1)])])
def test_another_object_with_its_id_is_not_known(make: Any) -> None:
    known = Known([one := make()])
    number, others = id(one), list[Any]()  # made before: a comprehension's own list might get the id
    del one
    for _ in range(1000):
        others.append(make())
    assert number in map(id, others), "the test needs one that has it"
    assert not any(other in known for other in others)


def test_tensors_are_not_kept_alive() -> None:
    tensor = torch.ones(1)
    batch = [{"x": tensor}]
    known, gone = Known([batch, batch[0]]), weakref.ref(tensor)
    assert batch in known
    del batch, tensor
    gc.collect()
    assert gone() is None and known is not None


class Counter:
    """As a scheduler: a new list in each step."""

    def __init__(self) -> None:
        self.last = [0]

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]


def test_a_variable_where_a_registered_objects_list_was_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered, "_registered", {"counter": Counter()})
    counter: Any = registered.known()["counter"]
    history: Any = ()
    mine = Variables()
    mine.begin()
    for number in range(100):
        counter.last = None
        history = [number, 1, 2]
        path = f"{test_a_variable_where_a_registered_objects_list_was_is_saved.__name__}().history"
        assert mine.save()["changed"][path][0] == ["numbers", "list", history, None, None, None]


def test_a_tensor_in_memory_that_a_covered_one_had_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, memory = torch.ones(4), torch.ones(4)
    weight.data = memory
    monkeypatch.setattr(covered, "_trainers", [weight])
    of = covered.Covered()
    assert of.has(memory) and of.has(weight[1:])
    weight.data = torch.zeros(4)
    assert not of.has(memory) and of.has(weight)
