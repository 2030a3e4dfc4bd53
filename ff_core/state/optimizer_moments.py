"""The state of an optimizer below a framework's wrappers: made before the first step, named, saved and put back.

Optimizers make their state during their first step. Copies need every tensor to exist, with the same name and size,
from version 0 on; so it is made here in the way the optimizer itself would make it. A trial has shown that the first
step then computes the same bits (`ff_core.state.optimizer_trial`).

What an optimizer makes in its first step whatever exists, such as SGD's momentum, is late. A tensor for it exists from
version 0 on, and after the first step the optimizer's own is copied there and replaced by it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from ff_core.errors import UnsupportedError
from ff_core.state import optimizer_tensors as held
from ff_core.state.optimizer_attributes import Numbers
from ff_core.state.optimizer_state import Hidden
from ff_core.state.optimizer_trial import Findings


class Rules(Hidden, Protocol):
    """What a framework's adapter knows of its optimizers. way_out: a sentence, what to do about one that is refused."""

    way_out: str

    def examine(self, optimizer: torch.optim.Optimizer, /) -> Findings:
        """Whether all that `optimizer` remembers is found, before training."""

    def steps(self, p: torch.Tensor, /) -> bool:
        """Whether the optimizer updates `p`, one of its parameters."""

    def make(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter, /) -> None:
        """Make the state of `p` that the first step would begin with, except what is late."""


def words(optimizer: torch.optim.Optimizer, findings: Findings, way_out: str) -> Iterator[str]:
    """The obstacles among `findings` as sentences that name the class and a way out."""
    for reason in findings.obstacles:
        yield f"the optimizer is a {_name(optimizer)}: {reason}. {way_out}"


class Moments:
    """The state of one optimizer. What it declares is checked in every version."""

    def __init__(self, optimizer: torch.optim.Optimizer, rules: Rules) -> None:
        self._optimizer, self._rules = optimizer, rules
        self._late: dict[str, torch.dtype] = {}
        self._tensors: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
        self._numbers = Numbers(optimizer)
        self._hook: Any = None

    def create(self) -> None:
        """Make the state that the first step would make, and declare it. State that exists is left alone.

        Raises UnsupportedError if the optimizer cannot be protected: since it was examined the script may have loaded
        a checkpoint, or changed its hyperparameters.
        """
        optimizer = self._optimizer
        findings = self._rules.examine(optimizer)
        if findings.obstacles:
            raise UnsupportedError("; ".join(words(optimizer, findings, self._rules.way_out)))
        self._late = findings.late
        if self._late and self._hook is None:
            mine = weakref.ref(self)
            self._hook = optimizer.register_step_post_hook(lambda *_: _take_late(mine()))
        self._numbers = Numbers(optimizer)
        self._tensors = {}
        for group in optimizer.param_groups:
            for p in (p for p in group["params"] if self._rules.steps(p)):
                if not optimizer.state[p]:
                    self._rules.make(optimizer, group, p)
                state = optimizer.state[p]
                self._tensors[p] = tensors = held.tensors(state)
                for name in self._late.keys() & state.keys():
                    tensors[name] = state[name]
                for name in self._late.keys() - state.keys():
                    tensors[name] = torch.zeros_like(p, dtype=self._late[name]).detach()

    def tensors(self, p: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """The declared tensors of one parameter by name; numbers are not among them."""
        return self._tensors[p]

    def save(self) -> dict[str, Any]:
        """{"numbers", "late", "attributes", "hidden"}, to be encoded at once. late: of each parameter, names of the
        late tensors that exist.

        Raises UnsupportedError if the optimizer holds another tensor than those declared.
        """
        states = [self._optimizer.state[p] for p in self._tensors]
        self._check(states)
        late = [sorted(self._late.keys() & state.keys()) for state in states]
        if self._late:
            states = [{name: value for name, value in s.items() if name not in self._late} for s in states]
        return {
            "numbers": held.numbers(states),
            "late": late,
            "attributes": self._numbers.save(),
            "hidden": self._rules.save(self._optimizer),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Put `save()` back; the tensors themselves are restored in place by others."""
        numbers = held.rows(saved["numbers"])
        for (p, tensors), row, late in zip(self._tensors.items(), numbers, saved["late"], strict=True):
            state = self._optimizer.state[p]
            for name in self._late.keys() & state.keys():
                del state[name]
            held.set_numbers(state, row)
            state.update({name: tensors[name] for name in late})
        self._numbers.load(saved["attributes"])
        self._rules.restore(self._optimizer, saved["hidden"])

    def take_late(self) -> None:
        """After a step: what the optimizer has made goes to its declared place."""
        for p, tensors in self._tensors.items():
            state = self._optimizer.state[p]
            for name in self._late.keys() & state.keys():
                if state[name] is not tensors[name]:
                    tensors[name].copy_(state[name])
                    state[name] = tensors[name]

    def _check(self, states: list[dict[str, Any]]) -> None:
        for state, declared in zip(states, self._tensors.values(), strict=True):
            for name, value in state.items():
                known = declared.get(name)
                if known is not value and (known is not None or (isinstance(value, torch.Tensor) and value.dim())):
                    self._refuse(f"has made a new tensor for its state {name!r}")
        for p in (p for group in self._optimizer.param_groups for p in group["params"] if self._rules.steps(p)):
            if p not in self._tensors:
                raise UnsupportedError(
                    f"a parameter of shape {tuple(p.shape)} is trained that had requires_grad = False when training "
                    "began: there are no copies of it. Let it require gradients before the training loop begins"
                )
        for key in self._optimizer.state:
            if not torch.is_tensor(key):
                self._refuse(f"has made an entry {str(key)[:40]!r} in its state")

    def _refuse(self, what: str) -> None:
        raise UnsupportedError(
            f"{_name(self._optimizer)} {what} during training, of which there are no copies. Load checkpoints before "
            f"the training loop. If none was loaded: {self._rules.way_out[0].lower()}{self._rules.way_out[1:]}"
        )


def _name(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _take_late(moments: Moments | None) -> None:
    if moments is not None:
        moments.take_late()
