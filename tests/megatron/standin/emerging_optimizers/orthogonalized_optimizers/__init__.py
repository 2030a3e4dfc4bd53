"""The optimizer below Muon: momentum, made in the first step, orthogonalized by a function that it is given."""

from __future__ import annotations

from typing import Any

import torch


class OrthogonalizedOptimizer(torch.optim.Optimizer):
    def __init__(
        self, params: Any, lr: float, momentum_beta: float, weight_decay: float, *, use_nesterov: bool,
        weight_decay_method: str, fp32_matmul_prec: str, scaled_orthogonalize_fn: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum_beta": momentum_beta, "weight_decay": weight_decay})
        self.use_nesterov, self.weight_decay_method = use_nesterov, weight_decay_method
        self.fp32_matmul_prec, self.scaled_orthogonalize_fn = fp32_matmul_prec, scaled_orthogonalize_fn

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                momentum, beta = state["momentum_buffer"], group["momentum_beta"]
                momentum.lerp_(p.grad, 1 - beta)
                grad = p.grad.lerp(momentum, beta) if self.use_nesterov else momentum
                p.add_(self.orthogonalize(p, grad), alpha=-group["lr"])

    def orthogonalize(self, p: torch.Tensor, grad: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError


def get_muon_scale_factor(rows: int, columns: int, mode: str = "spectral") -> float:
    return float(max(rows, columns)) ** 0.5
