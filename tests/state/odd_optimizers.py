"""Optimizers that keep state in places where nobody looks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (40, 9)]


class Momentum(torch.optim.Optimizer):
    """SGD with momentum; what a test needs is overridden."""

    def __init__(self, given: Any, **more: Any) -> None:
        super().__init__(given, {"lr": 0.1, **more})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if "mean" not in self.state[p]:
                    self.state[p]["mean"] = self.begin(p)
                self.update(p, self.state[p]["mean"])

    def begin(self, p: torch.Tensor) -> Any:
        return torch.zeros_like(p)

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        mean.mul_(0.9).add_(p.grad)
        p.data.sub_(mean, alpha=0.1)


class Grouped(Momentum):
    """Counts its steps in the group, from the first step on, as apex's FusedAdam does."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            group["norms"] = (*group.get("norms", ()), torch.tensor(float(group["step"])))[-2:]
        super().step()

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        group = self.param_groups[0]
        mean.mul_(0.9).add_(p.grad)
        p.data.sub_(mean, alpha=0.1 / (group["step"] + float(group["norms"][0])))


class Decaying(Momentum):
    """Its learning rate is a tensor that each step makes smaller in place."""

    def __init__(self, given: Any) -> None:
        super().__init__(given, rate=torch.tensor(0.1))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            group["rate"].mul_(0.9)

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        mean.mul_(0.9).add_(p.grad)
        p.data.sub_(mean * self.param_groups[0]["rate"])


class Replacing(Momentum):
    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        self.state[p]["mean"] = mean * 0.9 + p.grad
        p.data.sub_(self.state[p]["mean"], alpha=0.1)


class Ones(Momentum):
    def begin(self, p: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(p)


class Listing(Momentum):
    def begin(self, p: torch.Tensor) -> Any:
        return [torch.zeros_like(p)]

    def update(self, p: torch.Tensor, mean: Any) -> None:
        super().update(p, mean[0])


class Factored(Momentum):
    def begin(self, p: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1)

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        mean.add_(p.grad.norm())
        p.data.sub_(p.grad / (1 + mean))


class Global(Momentum):
    """With an entry in its state that belongs to no parameter, from the first step on."""

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        self.state["all"]["count"] = self.state["all"].get("count", 0) + 1  # type: ignore[index]
        super().update(p, mean)


class Showing(Momentum):
    """Its state_dict() says more than its state."""

    def __init__(self, given: Any, add: Callable[[Any], Any]) -> None:
        super().__init__(given)
        self.register_state_dict_post_hook(lambda _, shown: add(shown))


class Average(Momentum):
    """Has a tensor for itself that its steps change and never read."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.norm = torch.zeros(1)

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        super().update(p, mean)
        self.norm.add_(mean.norm())


class Coefficients(Momentum):
    """Leaves something of its last step for whoever wants to see it."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.coefficients: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.coefficients.clear()
        super().step()

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        super().update(p, mean)
        self.coefficients.append(mean.norm())


class Counting(Momentum):
    """Counts its steps in a dict. late: that makes a difference after a hundred steps only."""

    def __init__(self, given: Any, late: bool) -> None:
        super().__init__(given)
        self.kept, self.late = {"count": 0}, late

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        self.kept["count"] += 1
        smaller = self.kept["count"] > 100 if self.late else self.kept["count"]
        mean.mul_(0.9).add_(p.grad)
        p.data.sub_(mean, alpha=0.1 / (1 + smaller))


class Random(Momentum):
    """Draws from a generator of its own."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.generator = torch.Generator().manual_seed(1)

    def update(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        super().update(p, mean)
        torch.rand(1, generator=self.generator)


def having(**attributes: Any) -> Momentum:
    optimizer = Momentum(parameters())
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    return optimizer


def referring() -> Momentum:
    given = parameters()
    optimizer = Momentum(given)
    optimizer.own = {"all": given}  # type: ignore[attr-defined]
    return optimizer
