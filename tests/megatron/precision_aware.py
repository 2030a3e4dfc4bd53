"""A precision-aware FusedAdam on the CPU, with the state that TransformerEngine's keeps, where it keeps it.

Recorded from TransformerEngine 2.x: per parameter, state holds exp_avg, exp_avg_sq and master_param in the dtypes asked
for; masters of bf16 weights optionally as the 16 bits that the weights lack (int16). Values of fewer bits have a
scale in `_scales`, shape [1], which a step writes in place for fp16. The step count is in the group. The update is
Adam's, on unscaled values; the optimizer writes the weights. What it computes is not TransformerEngine's.
"""

from __future__ import annotations

from typing import Any

import torch

FP16_RANGE = torch.finfo(torch.float16).max / 2


class FusedAdam(torch.optim.Optimizer):
    """exp_avg_dtype, exp_avg_sq_dtype: float32, float16 or bfloat16; master_weight_dtype: float32 or float16."""

    def __init__(
        self, params: Any, lr: float, weight_decay: float = 0.0, betas: Any = (0.9, 0.999), eps: float = 1e-8, *,
        adam_w_mode: bool = True, master_weights: bool = False, use_decoupled_grad: bool = False,
        store_param_remainders: bool = False, exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32, master_weight_dtype: torch.dtype = torch.float32,
        capturable: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.master_weights, self.use_decoupled_grad = master_weights, use_decoupled_grad
        self.store_param_remainders = store_param_remainders and master_weight_dtype == torch.float32
        self.name_to_dtype_map = {
            "exp_avg": exp_avg_dtype, "exp_avg_sq": exp_avg_sq_dtype, "master_param": master_weight_dtype,
        }  # fmt: skip
        self._scales: dict[torch.Tensor, dict[str, torch.Tensor]] = {}

    def initialize_state(self, p: torch.Tensor, store_param_remainders: bool) -> None:
        for name, dtype in self.name_to_dtype_map.items():
            if name == "master_param" and not self.master_weights:
                continue
            remainders = name == "master_param" and store_param_remainders
            self.state[p][name] = torch.zeros_like(p, dtype=torch.int16 if remainders else dtype)
            if dtype != torch.float32:
                self._scales.setdefault(p, {})[name] = torch.ones(1)
            if name == "master_param" and not remainders:
                self._put(p, name, p.detach().float())

    def _get(self, p: torch.Tensor, name: str) -> torch.Tensor:
        value = self.state[p][name]
        if value.dtype == torch.int16:  # the weights are the upper half of the masters
            return ((p.detach().view(torch.int16).int() << 16) | (value.int() & 0xFFFF)).view(torch.float32)
        return value.float() * self._scales[p][name] if value.dtype == torch.float16 else value.float()

    def _put(self, p: torch.Tensor, name: str, value: torch.Tensor) -> None:
        kept = self.state[p][name]
        if kept.dtype == torch.int16:
            bits = value.contiguous().view(torch.int32)
            kept.copy_((bits << 16 >> 16).to(torch.int16))
            p.data.view(torch.int16).copy_((bits >> 16).to(torch.int16))
            return
        if kept.dtype == torch.float16:
            scale = self._scales[p][name]
            torch.div(value.abs().max().reshape(1), FP16_RANGE, out=scale)
            value = value * torch.where(scale > 0, scale.reciprocal(), 0.0)
        kept.copy_(value)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                self._update(p, group)

    def _update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        remainders = self.store_param_remainders and p.dtype == torch.bfloat16
        if not self.state[p]:
            self.initialize_state(p, remainders)
        grad = (p.decoupled_grad if self.use_decoupled_grad else p.grad).float()
        (beta1, beta2), step = group["betas"], group["step"]
        master = self._get(p, "master_param") if p.dtype != torch.float32 and self.master_weights else p.detach()
        average = self._get(p, "exp_avg").lerp(grad, 1 - beta1)
        square = self._get(p, "exp_avg_sq").lerp(grad * grad, 1 - beta2)
        denominator = (square / (1 - beta2**step)).sqrt() + group["eps"]
        update = average / (1 - beta1**step) / denominator + group["weight_decay"] * master
        master = master - group["lr"] * update
        self._put(p, "exp_avg", average)
        self._put(p, "exp_avg_sq", square)
        if p.dtype != torch.float32 and self.master_weights:
            self._put(p, "master_param", master)
        if not remainders:
            p.data.copy_(master)


FusedAdam.__module__ = "transformer_engine.pytorch.optimizers.fused_adam"  # by which it is known


def enable(build: Any, dtypes: list[str]) -> None:
    """Make megatron-core build this optimizer. build: the module with OptimizerConfig; dtypes: of both moments, and
    "remainders" or the masters'."""
    import megatron.core.optimizer as core
    from megatron.core.optimizer import distrib_optimizer

    original = build.OptimizerConfig

    def config(**kwargs: Any) -> Any:
        made = original(**kwargs)  # it would look for TransformerEngine
        made.use_precision_aware_optimizer = made.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
        made.exp_avg_dtype, made.exp_avg_sq_dtype = getattr(torch, dtypes[0]), getattr(torch, dtypes[1])
        made.store_param_remainders = dtypes[2] == "remainders"
        made.main_params_dtype = torch.float32 if made.store_param_remainders else getattr(torch, dtypes[2])
        return made

    build.OptimizerConfig = config
    core.Adam = distrib_optimizer.Adam = FusedAdam
    core.USING_PYTORCH_OPTIMIZER = False
    core.is_te_min_version = lambda version: True
