"""A small model and data set with what makes exact recovery hard, and a hash of all that training changes."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


class Model(torch.nn.Module):
    """With what makes recovery hard: dropout, BatchNorm, a frozen parameter, a constant buffer, a lazily made one."""

    extra_factor: float | None = None  # of the layer `extra`; None: it is not run

    def __init__(self, frozen: bool, extra: bool = False) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(16, 32)
        self.norm = torch.nn.BatchNorm1d(32, affine=False)
        self.drop = torch.nn.Dropout(0.2)
        self.outer = torch.nn.Linear(32, 4)
        self.register_buffer("scale", torch.full((32,), 0.5))
        self.register_buffer("seen", torch.zeros(1))
        if frozen:
            self.base = torch.nn.Linear(16, 32)
            self.base.requires_grad_(False)
        if extra:
            self.extra = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inner(x)
        if hasattr(self, "base"):
            h = h + self.base(x)
        kept = self.norm.running_mean.dtype  # DeepSpeed 0.18 makes buffers as precise as weights
        h = self.drop(torch.relu(self.norm(h.to(kept)).to(h.dtype))) * self.scale.to(h.dtype)
        self.seen += x.shape[0]
        if self.extra_factor is not None:
            h = h + self.extra_factor * self.extra(h)
        return self.outer(h)


class Noisy(torch.utils.data.Dataset):
    """Samples whose values depend on the global generators of Python, NumPy and torch at the time of the fetch."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.full((16,), index / self.size) + 0.1 * torch.randn(16) + random.random() + float(np.random.rand())
        return {"x": x, "y": torch.tensor(index % 4)}


FORWARDS = [0]  # so many forward passes there were


class Losing(Model):
    """A model whose output is the loss, as an unmodified loop that can be replayed needs it."""

    forwards = 0
    counts = ""  # where it counts its forward passes, on which the loss depends

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:  # type: ignore[override]
        loss = torch.nn.functional.cross_entropy(super().forward(x).float(), y)
        if self.counts:
            FORWARDS[0] += 1
            self.forwards += 1
            loss = loss * (1.0 + 0.01 * (FORWARDS[0] if self.counts == "in a variable" else self.forwards))
        return {"loss": loss, "logits": None} if self.as_dict else loss


class Numbered(torch.optim.SGD):
    """Keeps a count that its step depends on in an attribute of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.data.sub_(p.grad, alpha=0.1 / self.count)


class Counting(torch.optim.SGD):
    """Keeps that count where no rule finds it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept = {"count": 0}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.kept["count"] += 1
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.data.sub_(p.grad, alpha=0.1 / self.kept["count"])


def make_optimizer(case: dict[str, Any], model: torch.nn.Module) -> torch.optim.Optimizer:
    """For the parameters of `model` that are trained, in two groups; case["optimizer"]: which."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if case.get("optimizer") == "muon":  # for matrices only
        return torch.optim.Muon([p for p in parameters if p.dim() == 2], lr=1e-2)
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
    if case.get("one_group"):
        groups = [{"params": parameters}]
    if case.get("optimizer") in ("counting", "numbered"):
        return (Counting if case["optimizer"] == "counting" else Numbered)(groups, lr=1e-2)
    if case.get("optimizer") == "sgd":
        return torch.optim.SGD(groups, lr=1e-2)
    if case.get("optimizer") == "tensor_lr":
        return torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False)
    if case.get("optimizer", "").startswith("cpu_"):
        from deepspeed.ops import adagrad, adam, lion

        kinds = {
            "cpu_adam": adam.DeepSpeedCPUAdam,
            "cpu_lion": lion.DeepSpeedCPULion,
            "cpu_adagrad": adagrad.DeepSpeedCPUAdagrad,
        }
        return kinds[case["optimizer"]](groups, lr=1e-2)
    return torch.optim.AdamW(groups, lr=1e-2, amsgrad=case.get("optimizer") == "amsgrad")


def scaler_of(engine: Any) -> Any:
    """What has the loss scale of fp16, and when it changes; None if this engine has none."""
    wrapper = vars(engine.optimizer)
    return wrapper.get("loss_scaler") or wrapper.get("loss_scale_config")


def digest(engine: Any) -> str:
    """Hash of everything that training changes: weights, buffers, masters, moments, counters."""
    sha = hashlib.sha256()
    tensors = [*engine.module.state_dict().values()]
    wrapper = engine.optimizer
    inner = wrapper if wrapper is engine.basic_optimizer else wrapper.optimizer
    numbers: list[dict[str, Any]] = []
    on_gpu = inner
    stepped = [p for group in inner.param_groups for p in group["params"]]
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):  # ZeRO-3: persistent parameters are whole, the others empty
        stepped = wrapper.fp32_partitioned_groups_flat
        on_gpu = getattr(wrapper, "backup_optimizer", inner)  # of twin-flow: it steps a part of them
        tensors += [p.ds_tensor for p in engine.module.parameters()]
    for p in stepped:
        state = inner.state[p] or on_gpu.state[p]
        tensors += [p.data, *(v for v in state.values() if torch.is_tensor(v))]
        numbers.append({k: v for k, v in state.items() if not torch.is_tensor(v)})
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    counters = (engine.global_steps, engine.micro_steps, engine.skipped_steps, engine.global_samples)
    scaler = sorted(vars(scaler_of(engine)).items()) if scaler_of(engine) is not None else None
    sha.update(repr((counters, [group["lr"] for group in inner.param_groups], numbers, scaler)).encode())
    return sha.hexdigest()
