"""A trial of an optimizer before training: whether all that it remembers is where the rule looks for it.

The rule is in `optimizer_tensors`. A copy of the optimizer with a small parameter makes a few steps, goes back,
and makes them again; so does a fresh copy that is given the saved state. All must come out with the same bits. An
optimizer that counts its steps elsewhere, or that begins in another way when its state exists already, does not.

Copies of versions need every tensor to exist, with the same size and place, before the first step. So the trial also
tells which tensors an optimizer makes in its first step whatever exists: they are called late.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from ff_core.state import optimizer_tensors as held

STEPS = 3
LARGEST = 8  # elements of the small parameter in each dimension


@dataclass(frozen=True)
class Findings:
    """obstacles: a clause each, why the optimizer cannot be protected. late: name of a late tensor -> its dtype."""

    obstacles: tuple[str, ...] = ()
    late: dict[str, torch.dtype] = field(default_factory=dict)


class _Obstacle(Exception):
    pass


def examine(optimizer: torch.optim.Optimizer) -> Findings:
    """Try `optimizer` with one parameter of each kind in each of its groups. It is not changed, nor is random state."""
    obstacles = list(dict.fromkeys(held.obstacles(optimizer)))
    late: dict[str, torch.dtype] = {}
    if hasattr(type(optimizer), "__del__"):
        obstacles.append("it has a destructor, so no copy of it can be tried")
    for name, value in vars(optimizer).items():
        if isinstance(value, torch.optim.Optimizer):
            obstacles.append(f"it steps another optimizer, its {name!r}")
    if obstacles:
        return Findings(tuple(obstacles))
    for group in optimizer.param_groups:
        kinds = {(p.dim(), p.dtype, p.device): p for p in reversed(group["params"]) if p.requires_grad}
        for p in kinds.values():
            devices = [p.device] if p.is_cuda else []
            try:
                with torch.random.fork_rng(devices=devices):
                    late |= _try(optimizer, group, p)
            except _Obstacle as obstacle:
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
        elif float(value) in (0, 1):  # the number of steps
            zero = torch.zeros_like(value) if torch.is_tensor(value) else type(value)(0)
            optimizer.state[p][name] = zero
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
        # Not by the constructor, whose arguments nobody knows. "step" may be a scheduler's, bound to the original.
        self.optimizer = object.__new__(type(optimizer))
        own = {name: _own(value) for name, value in vars(optimizer).items() if name not in ("step", "state")}
        own["state"] = defaultdict(dict)
        own["param_groups"] = [{**{k: _own(v) for k, v in group.items()}, "params": [self.p]}]
        vars(self.optimizer).update(own)
        if existing:
            self.optimizer.state[self.p] = {
                name: value[part].clone() if torch.is_tensor(value) and value.dim() and not whole else _own(value)
                for name, value in existing.items()
            }
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
        for obstacle in held.unseen(self.state):
            raise _Obstacle(obstacle)

    def run(self, steps: range) -> list[bytes]:
        """Steps by their numbers. Returns the bits of all that is left."""
        for number in steps:
            torch.random.default_generator.manual_seed(number)
            if self.p.is_cuda:
                torch.cuda.default_generators[self.p.device.index].manual_seed(number)
            self.step(_values(self.p, number))
        left = [self.p.detach(), *held.tensors(self.state).values()]
        bits = [t.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes() for t in left]
        return [*bits, repr(held.numbers([self.state])).encode()]

    def save(self) -> tuple[Any, ...]:
        clones = {name: value.clone() for name, value in held.tensors(self.state).items()}
        return self.p.detach().clone(), clones, held.numbers([self.state])[0], held.groups(self.optimizer)

    def load(self, saved: tuple[Any, ...]) -> None:
        p, clones, numbers, groups = saved
        with torch.no_grad():
            self.p.copy_(p)
            for name, value in clones.items():
                self.state.setdefault(name, torch.empty_like(value)).copy_(value)
        held.set_numbers(self.state, numbers)
        held.set_groups(self.optimizer, groups)


def _try(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: torch.nn.Parameter) -> dict[str, torch.dtype]:
    lazy, ahead = _Copy(optimizer, group, p), _Copy(optimizer, group, p)
    made = ahead.make()
    if lazy.run(range(1, 2)) != ahead.run(range(1, 2)):
        raise _Obstacle("its first step gives other numbers when its state exists already")
    late = {name: value for name, value in ahead.state.items() if torch.is_tensor(value) and name not in made}
    late = {name: value for name, value in late.items() if value.dim() or not p.dim()}
    known, saved = {**made, **held.tensors(ahead.state)}, ahead.save()
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
        again.load(saved)
        if again.run(range(2, STEPS + 1)) != expected:
            raise _Obstacle("a step repeated from its saved state gives other numbers: it keeps state elsewhere")
    return {name: value.dtype for name, value in late.items()}


def _own(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, (list, dict, set)) else value


def _values(p: torch.Tensor, seed: int) -> torch.Tensor:
    """Numbers of the size of a gradient; a few are zero, with both signs, as gradients are."""
    values = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    flat = values.reshape(-1)
    flat[3::7], flat[4::7] = 0.0, -0.0
    return values.to(p.device, p.dtype)
