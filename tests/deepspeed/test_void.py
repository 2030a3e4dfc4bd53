"""An iteration that must be repeated and cannot be done again by itself: the script gets no value that nobody gave."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.errors import FailoverError, FailoverInterrupt
from ff_deepspeed import protection
from ff_deepspeed.collectives import Script
from ff_deepspeed.redo import Redo
from ff_deepspeed.unmodified import Unmodified


@pytest.fixture
def void(monkeypatch: pytest.MonkeyPatch) -> list[FailoverError]:
    """The errors that the protection was told of."""
    told: list[FailoverError] = []

    def fail(error: FailoverError) -> FailoverError:
        told.append(error)
        return error

    loop: Any = object.__new__(Unmodified)
    loop._thread = threading.get_ident()
    loop._redo = SimpleNamespace(open=object(), busy=False, void=True, reason="it wrote")
    loop._p = SimpleNamespace(fail=fail, engine=None)
    monkeypatch.setattr(protection, "current", lambda: SimpleNamespace(unmodified=loop))
    return told


@pytest.mark.parametrize("way", ["make", "launch"])
def test_a_collective_in_a_void_iteration_ends_the_job_with_words(way: str, void: list[FailoverError]) -> None:
    value = torch.tensor([1.41])
    with pytest.raises(FailoverError, match=r"nobody can give: it wrote.*copies.*ff_deepspeed.batches"):
        getattr(Script(), way)(lambda tensor: tensor.mul_(2), (value,), {})
    assert len(void) == 1, "it cannot be lost: the engine's next call raises it again"
    assert value.item() == torch.tensor(1.41).item()


def test_an_interrupted_forward_pass_that_does_not_count_makes_no_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made inside of a call, its collectives (of ZeRO-3, of experts) would go straight through."""

    def interrupted() -> None:
        raise FailoverInterrupt(1)

    redo: Any = object.__new__(Redo)
    redo.busy = False
    monkeypatch.setattr(Redo, "_recover", lambda self, epoch, event: False)
    event: Any = SimpleNamespace(ambient=None)
    assert redo.make(interrupted, event, lambda: "busy" if redo.busy else "outside") == "outside"
