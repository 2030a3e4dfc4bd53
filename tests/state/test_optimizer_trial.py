"""What an optimizer keeps where the rule does not look is found before training, by name."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ff_core.state import found, optimizer_trial
from ff_core.state.optimizer_tensors import trainable
from tests.state import odd_optimizers as odd


class NothingHidden:
    def save(self, optimizer: Any, /) -> None:
        pass

    def restore(self, optimizer: Any, saved: Any, /) -> None:
        pass


def examine(optimizer: Any) -> tuple[str, ...]:
    return optimizer_trial.examine(optimizer, NothingHidden()).obstacles


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "count": (lambda: odd.Counting(odd.parameters(), late=False), r"another attribute \"kept\['count'\]\""),
    "late count": (lambda: odd.Counting(odd.parameters(), late=True), r"another attribute \"kept\['count'\]\""),
    "replacing": (lambda: odd.Replacing(odd.parameters()), "makes a new tensor for its state 'mean'"),
    "ones": (lambda: odd.Ones(odd.parameters()), "its first step gives another parameter when its state exists"),
    "list": (lambda: odd.Listing(odd.parameters()), "its state 'mean' is a list, neither a tensor nor a number"),
    "factored": (lambda: odd.Factored(odd.parameters()[1:]), "its state 'mean' has another shape than the parameter"),
    "global": (lambda: odd.Global(odd.parameters()), "its state has an entry 'all' that belongs to no parameter"),
    "checkpoint": (
        lambda: odd.Showing(odd.parameters(), lambda s: s.update(more=1)),
        "state_dict.. has an entry 'more' besides the state of its parameters",
    ),
    "checkpoint's parameter": (
        lambda: odd.Showing(odd.parameters(), lambda s: s["state"].update({0: {"mean": 1, "more": 1}})),
        "state_dict.. says 'mean' of a parameter, which its state does not have; .* says 'more' of a parameter",
    ),
    "checkpoint's group": (
        lambda: odd.Showing(odd.parameters(), lambda s: s["param_groups"][0].update(more=1)),
        "state_dict.. says 'more' of a group of parameters, which the group does not have",
    ),
    "tensor": (lambda: odd.Average(odd.parameters()), "another attribute 'norm': it keeps state elsewhere"),
    "generator": (lambda: odd.Random(odd.parameters()), "another attribute 'generator': it keeps state elsewhere"),
    "large tensor": (lambda: odd.having(own=[torch.zeros(300_000)]), "'own' holds more than 1.00 MiB of tensors"),
    "large": (lambda: odd.having(own=[0] * 200_000), "its attribute 'own' leads to more than 100000 values"),
    "lock": (lambda: odd.having(own=threading.Lock()), "its attribute 'own', a lock, cannot be copied for a trial"),
    "parameters": (odd.referring, r"its attribute \"own\['all'\]\[0\]\" is one of its parameters"),
    "optimizer": (lambda: odd.having(own=torch.optim.SGD(odd.parameters())), "it steps another optimizer, its 'own'"),
    "function": (
        lambda: odd.Momentum(odd.parameters(), scale=lambda step: step),
        r"its parameter groups\[0\]\['values'\]\['scale'\]: a value of type .*function.* cannot be saved",
    ),
    "closure": (lambda: torch.optim.LBFGS(odd.parameters()[:1]), "its attribute '_params.0.' is one of its parameters"),
    "sparse": (lambda: torch.optim.SparseAdam(odd.parameters()), "cannot be tried: RuntimeError: .*SparseAdam"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_rule_cannot_see_is_found_before_training(name: str) -> None:
    make, reason = REFUSED[name]
    optimizer = make()
    values = [p.tolist() for p in trainable(optimizer)]
    assert re.search(reason, "; ".join(examine(optimizer)))
    assert [p.tolist() for p in trainable(optimizer)] == values
    if isinstance(optimizer, odd.Counting):
        assert optimizer.kept == {"count": 0}, "a trial counts in copies"


class Largest(TorchDispatchMode):
    """Sees every tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_a_trial_makes_no_copies_of_large_tensors() -> None:
    """A GPU may have no room for them."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1000, 200)), torch.nn.Parameter(torch.zeros(90_000))])
    with Largest() as made:
        assert examine(optimizer) == ()
    assert 0 < made.bytes <= 256 * 256 * 4


def test_a_trial_while_another_engine_trains_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found.watch(dict)
    monkeypatch.setattr(found, "_quiet", 0)
    before = dict(found._stepped)
    assert examine(odd.Coefficients(odd.parameters())) == ()
    assert found._stepped == before


def test_an_optimizer_without_surprises_passes() -> None:
    assert examine(odd.Momentum(odd.parameters())) == ()


def test_attributes_that_are_made_anew_by_every_step_are_no_obstacle() -> None:
    """As FusedLamb's coefficients: only its user reads them."""
    assert examine(odd.Coefficients(odd.parameters())) == ()
