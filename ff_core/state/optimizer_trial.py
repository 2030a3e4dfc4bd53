"""A trial of an optimizer before training: whether all that it remembers is where the rule looks for it.

The rule is in `optimizer_tensors`. A copy of the optimizer with a small parameter makes a few steps, goes back,
and makes them again; so does a fresh copy that is given the saved state. All must come out with the same bits: the
parameter, its state, the groups, and whatever the optimizer has in attributes. An optimizer that counts its steps
elsewhere, or that begins in another way when its state exists already, does not.

Copies of versions need every tensor to exist, with the same size and place, before the first step. So the trial also
tells which tensors an optimizer makes in its first step whatever exists: they are called late.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ff_core.errors import UnsupportedError
from ff_core.state import codec, found
from ff_core.state import optimizer_attributes as attributes
from ff_core.state import optimizer_tensors as held
from ff_core.state.optimizer_state import Hidden

STEPS = 3
LARGEST = 256  # elements of the small parameter in each dimension: some classes treat small matrices in another way
_OWN = (bool, int, float, str)  # what an optimizer may have noted at a parameter


@dataclass(frozen=True)
class Findings:
    """obstacles: a clause each, why the optimizer cannot be protected. late: name of a late tensor -> its dtype."""

    obstacles: tuple[str, ...] = ()
    late: dict[str, torch.dtype] = field(default_factory=dict)


class _Obstacle(UnsupportedError):
    pass


def requires_grad(p: torch.Tensor) -> bool:
    return p.requires_grad


def examine(
    optimizer: torch.optim.Optimizer, hidden: Hidden, steps: Callable[[torch.Tensor], bool] = requires_grad
) -> Findings:
    """Try `optimizer` with one parameter of each kind in each of its groups. It is not changed, nor is random state.

    steps: whether it updates a parameter.
    """
    obstacles = list(dict.fromkeys([*held.obstacles(optimizer), *attributes.obstacles(optimizer)]))
    late: dict[str, torch.dtype] = {}
    if hasattr(type(optimizer), "__del__"):
        obstacles.append("it has a destructor, so no copy of it can be tried")
    if obstacles:
        return Findings(tuple(obstacles))
    for group in optimizer.param_groups:
        kinds = {(p.dim(), p.dtype, p.device): p for p in reversed(group["params"]) if steps(p)}
        for p in kinds.values():
            devices = [p.device] if p.is_cuda else []
            try:
                with found.framework_steps(), torch.random.fork_rng(devices=devices):
                    late |= _try(optimizer, group, p, hidden)
            except UnsupportedError as obstacle:
                obstacles.append(str(obstacle))
            except Exception as error:
                obstacles.append(f"its step() cannot be tried: {type(error).__name__}: {error}")
    return Findings(tuple(dict.fromkeys(obstacles)), late)


def make(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter) -> None:
    """Make the state of `p` that the first step would begin with, except what is late.

    Raises an error that `examine` turns into an obstacle if it is not known how the state begins.
    """
    if hasattr(optimizer, "_init_group"):
        held.make_by_torch(optimizer, group, p)
        return
    first = _Copy(optimizer, group, p, empty=True)
    with torch.no_grad():
        first.p.zero_()
    first.step(torch.zeros_like(first.p))
    for name, value in first.state.items():
        if torch.is_tensor(value) and value.shape == first.p.shape:
            optimizer.state[p][name] = torch.zeros_like(p, dtype=value.dtype, device=value.device)
        elif torch.is_tensor(value) and value.dim():
            raise _Obstacle(f"its state {name!r} has another shape than the parameter")
        elif value in (0, 1):  # the number of steps
            optimizer.state[p][name] = torch.zeros_like(value) if torch.is_tensor(value) else type(value)(0)
        else:
            raise _Obstacle(f"its state {name!r} begins with something else than zero")


class _Copy:
    """A copy of `optimizer` that steps one parameter, which is as large as `p` or smaller. empty: without state."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter, *, empty: bool = False
    ) -> None:
        existing = {} if empty else optimizer.state.get(p, {})
        whole = any(value.shape != p.shape for value in held.tensors(existing).values())
        part = tuple(slice(0, None if whole else LARGEST) for _ in p.shape)
        self.p = torch.nn.Parameter(torch.zeros_like(p[part]))
        with torch.no_grad():
            self.p.copy_(_values(self.p, 0))
        vars(self.p).update({name: value for name, value in vars(p).items() if isinstance(value, _OWN)})
        # Not by the constructor, whose arguments nobody knows.
        self.optimizer = object.__new__(type(optimizer))
        own = {n: copy.copy(v) for n, v in vars(optimizer).items() if n == "defaults" or n.startswith("_optimizer_")}
        own |= attributes.copied(optimizer, self.optimizer)
        own["state"] = defaultdict(dict)
        own["param_groups"] = [{k: [self.p] if k == "params" else held.copied(v) for k, v in group.items()}]
        vars(self.optimizer).update(own)
        self._numbers = attributes.Numbers(self.optimizer)
        if existing:
            parts = existing if whole else existing | {n: v[part] for n, v in held.tensors(existing).items()}
            self.optimizer.state[self.p] = held.copied(parts)
        step = type(optimizer).step
        # torch has every step call the hooks that are registered for all optimizers: this one is not theirs.
        self._step: Any = step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]

    @property
    def state(self) -> dict[str, Any]:
        return self.optimizer.state[self.p]

    def make(self) -> dict[str, torch.Tensor]:
        """Its tensors, made before the first step."""
        if not self.state:
            make(self.optimizer, self.optimizer.param_groups[0], self.p)
        return held.tensors(self.state)

    def step(self, gradient: torch.Tensor) -> None:
        self.p.grad = gradient.clone()
        self._step(self.optimizer)
        for obstacle in held.obstacles(self.optimizer):
            raise _Obstacle(obstacle)

    def run(self, steps: range) -> dict[str, Any]:
        """Steps by their numbers. Returns what is left: a name for it -> its bits."""
        for number in steps:
            torch.random.default_generator.manual_seed(number)
            if self.p.is_cuda:
                torch.cuda.default_generators[self.p.device.index].manual_seed(number)
            self.step(_values(self.p, number))
        left = {"parameter": attributes.bits_of(self.p)}
        left |= {f"state {name!r}": attributes.bits_of(value) for name, value in held.tensors(self.state).items()}
        left["number of the state"] = repr(held.rows(held.numbers([self.state])))
        left |= attributes.bits_within(held.groups(self.optimizer)[0]["values"], "group")
        return left | attributes.bits(self.optimizer)

    def save(self, hidden: Hidden) -> dict[str, Any]:
        numbers = {
            "numbers": held.numbers([self.state]),
            "groups": held.groups(self.optimizer),
            "attributes": self._numbers.save(),
            "hidden": hidden.save(self.optimizer),
        }
        return {
            "parameter": self.p.detach().clone(),
            "tensors": {name: value.clone() for name, value in held.tensors(self.state).items()},
            **codec.decode(codec.encode(numbers)),  # as a replacement gets them
        }

    def load(self, saved: dict[str, Any], hidden: Hidden) -> None:
        with torch.no_grad():
            self.p.copy_(saved["parameter"])
            for name, value in saved["tensors"].items():
                self.state.setdefault(name, torch.empty_like(value)).copy_(value)
        held.set_numbers(self.state, held.rows(saved["numbers"])[0])
        held.set_groups(self.optimizer, saved["groups"])
        self._numbers.load(saved["attributes"])
        hidden.restore(self.optimizer, saved["hidden"])


def _try(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter, hidden: Hidden
) -> dict[str, torch.dtype]:
    lazy, ahead = _Copy(optimizer, group, p), _Copy(optimizer, group, p)
    made = ahead.make()
    differing = _differing(lazy.run(range(1, 2)), ahead.run(range(1, 2)))
    if differing:
        raise _Obstacle(f"its first step gives another {differing} when its state exists already")
    late = {name: value for name, value in ahead.state.items() if torch.is_tensor(value) and name not in made}
    late = {name: value for name, value in late.items() if value.dim() or not p.dim()}
    known, saved = {**made, **held.tensors(ahead.state)}, ahead.save(hidden)
    for name, value in late.items():
        if value.shape != ahead.p.shape:
            raise _Obstacle(f"its state {name!r}, made in its first step, has another shape than the parameter")
    expected = ahead.run(range(2, STEPS + 1))
    for name, value in held.tensors(ahead.state).items():
        if known.get(name) is not value:
            raise _Obstacle(f"it makes a new tensor for its state {name!r} in its steps")
    fresh = _Copy(optimizer, group, p)
    fresh.make()
    for again in (ahead, fresh):
        again.load(saved, hidden)
        differing = _differing(expected, again.run(range(2, STEPS + 1)))
        if differing:
            raise _Obstacle(f"a step repeated from its saved state gives another {differing}: it keeps state elsewhere")
    return {name: value.dtype for name, value in late.items()}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Name of the first that is not the same; an attribute rather than its consequences."""
    names = [name for name in one | other if one.get(name) != other.get(name)]
    return min(names, key=lambda name: not name.startswith("attribute"), default="")


def _values(p: torch.Tensor, seed: int) -> torch.Tensor:
    """Numbers of the size of a gradient; a few are zero, with both signs, as gradients are."""
    values = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    flat = values.reshape(-1)
    flat[3::7], flat[4::7] = 0.0, -0.0
    return values.to(p.device, p.dtype)
