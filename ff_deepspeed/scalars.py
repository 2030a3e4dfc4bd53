"""Everything small that an iteration of DeepSpeed changes: counters, hyperparameters, scheduler, loss scaler, numbers
of the optimizer's state.

`save` returns plain values and live tensors, to be encoded at once (see ff_core.state.codec). `load` puts them into the
same or a fresh engine.
"""

from __future__ import annotations

from typing import Any

from ff_core.state import optimizer_tensors
from ff_core.state.optimizer_tensors import copied
from ff_deepspeed import moments
from ff_deepspeed.pipe import state as pipe
from ff_deepspeed.state_map import inner_optimizers, whole_groups

COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps", "_unmanaged_backward_count")
FLAGS = ("_step_applied", "_global_grad_norm", "_is_gradient_accumulation_boundary")
WRAPPER = ("overflow", "_global_grad_norm", "micro_step_id", "custom_loss_scaler", "external_loss_scale")
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def save(engine: Any) -> dict[str, Any]:
    inner = inner_optimizers(engine)
    return {
        "engine": _attributes(engine, COUNTERS + FLAGS),
        "sizes": sizes(engine),
        "wrapper": _attributes(engine.optimizer, WRAPPER),
        "scaler": _attributes(_loss_scaler(engine), SCALER),
        "groups": [optimizer_tensors.groups(one) for one in inner],
        "moments": [moments.of(one).save() for one in inner],
        "lr_scheduler": _save_scheduler(engine.lr_scheduler),
        "activation_rng": _activation_rng().get_states(),
        "pipeline": pipe.save(engine) if pipe.is_pipeline(engine) else None,
    }


def load(engine: Any, saved: dict[str, Any]) -> None:
    _set(engine, saved["engine"])
    set_sizes(engine, saved["sizes"])
    _set(engine.optimizer, saved["wrapper"])
    _set(_loss_scaler(engine), saved["scaler"])
    for inner, groups, state in zip(inner_optimizers(engine), saved["groups"], saved["moments"], strict=True):
        with whole_groups(engine, inner):
            optimizer_tensors.set_groups(inner, groups)
        moments.of(inner).load(state)
    _load_scheduler(engine.lr_scheduler, saved["lr_scheduler"])
    if saved["activation_rng"]:
        _activation_rng().set_states(saved["activation_rng"])
    if saved["pipeline"] is not None:
        pipe.load(engine, saved["pipeline"])


def counters(engine: Any) -> dict[str, int]:
    """The engine's counters, for `set_counters`."""
    return _attributes(engine, COUNTERS)


def set_counters(engine: Any, values: dict[str, int]) -> None:
    _set(engine, values)


def sizes(engine: Any) -> dict[str, int]:
    """Batch sizes and accumulation steps, which a script may change while it trains, for `set_sizes`."""
    return _attributes(engine._config, SIZES)


def set_sizes(engine: Any, values: dict[str, int]) -> None:
    _set(engine._config, values)
    if pipe.is_pipeline(engine):
        engine.micro_batches = engine.gradient_accumulation_steps()


def _attributes(owner: Any, names: tuple[str, ...]) -> dict[str, Any]:
    # vars(), because engines and optimizers answer unknown names from the objects they wrap.
    return {name: vars(owner)[name] for name in names if owner is not None and name in vars(owner)}


def _set(owner: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, copied(value))


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
