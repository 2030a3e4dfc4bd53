"""Everything small that an iteration of DeepSpeed changes: counters, hyperparameters, scheduler, loss scaler, Adam
steps.

`save` returns plain values and live tensors, to be encoded at once (see ff_core.state.codec). `load` puts them into the
same or a fresh engine.
"""

from __future__ import annotations

from typing import Any

import torch

from ff_deepspeed import cpu_adam, moments
from ff_deepspeed.state_map import inner_optimizer

COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps", "_unmanaged_backward_count")
FLAGS = ("_step_applied", "_global_grad_norm", "_is_gradient_accumulation_boundary")
WRAPPER = ("overflow", "_global_grad_norm", "micro_step_id", "custom_loss_scaler", "external_loss_scale")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def save(engine: Any) -> dict[str, Any]:
    inner = inner_optimizer(engine)
    return {
        "engine": _attributes(engine, COUNTERS + FLAGS),
        "wrapper": _attributes(engine.optimizer, WRAPPER),
        "scaler": _attributes(_loss_scaler(engine), SCALER),
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in inner.param_groups],
        "steps": moments.steps(inner),
        "cpu_adam": cpu_adam.save(inner),
        "lr_scheduler": _save_scheduler(engine.lr_scheduler),
        "activation_rng": _activation_rng().get_states(),
    }


def load(engine: Any, saved: dict[str, Any]) -> None:
    inner = inner_optimizer(engine)
    _set(engine, saved["engine"])
    _set(engine.optimizer, saved["wrapper"])
    _set(_loss_scaler(engine), saved["scaler"])
    for group, values in zip(inner.param_groups, saved["groups"], strict=True):
        for key, value in values.items():
            if torch.is_tensor(group.get(key)) and torch.is_tensor(value):
                group[key].copy_(value)  # a scheduler may hold the very tensor
            else:
                group[key] = _copy(value)
    moments.set_steps(inner, saved["steps"])
    cpu_adam.restore(inner, saved["cpu_adam"])
    _load_scheduler(engine.lr_scheduler, saved["lr_scheduler"])
    if saved["activation_rng"]:
        _activation_rng().set_states(saved["activation_rng"])


def counters(engine: Any) -> dict[str, int]:
    """The engine's counters, for `set_counters`."""
    return _attributes(engine, COUNTERS)


def set_counters(engine: Any, values: dict[str, int]) -> None:
    _set(engine, values)


def _copy(value: Any) -> Any:
    return value.detach().clone() if torch.is_tensor(value) else value


def _attributes(owner: Any, names: tuple[str, ...]) -> dict[str, Any]:
    # vars(), because engines and optimizers answer unknown names from the objects they wrap.
    return {name: vars(owner)[name] for name in names if owner is not None and name in vars(owner)}


def _set(owner: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, _copy(value))


def _loss_scaler(engine: Any) -> Any:
    for name in ("loss_scaler", "loss_scale_config"):
        if name in vars(engine.optimizer):
            return getattr(engine.optimizer, name)
    return None


def _activation_rng() -> Any:
    """The generators of activation checkpointing's model-parallel regions."""
    from deepspeed.runtime.activation_checkpointing.checkpointing import get_cuda_rng_tracker

    return get_cuda_rng_tracker()


def _save_scheduler(scheduler: Any) -> dict[str, Any] | None:
    if scheduler is None or not hasattr(scheduler, "state_dict"):
        return None
    saved: dict[str, Any] = {"state": scheduler.state_dict()}
    if "_last_lr" in vars(scheduler):
        saved["last_lr"] = list(scheduler._last_lr)  # DeepSpeed's schedulers leave it out of their state
    return saved


def _load_scheduler(scheduler: Any, saved: dict[str, Any] | None) -> None:
    if saved is None:
        return
    scheduler.load_state_dict(saved["state"])
    if "last_lr" in saved:
        scheduler._last_lr = list(saved["last_lr"])
