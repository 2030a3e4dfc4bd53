"""Everything small that an iteration of Megatron changes: counters, schedule, scaler, hyperparameters, random states.

`save` returns plain values and tensors (see ff_core.state.codec); `load` puts them into the same or a fresh process.
Python's, NumPy's and torch's generators are ff_core's (ff_core.state.rng); Megatron's tracker is here.
"""

from __future__ import annotations

from typing import Any

import torch

from ff_megatron import optimizers

COUNTERS = ("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples", "consumed_train_bins")
_RERUN = ("large_value_counts", "max_values", "first_iteration_complete")
_PLAIN = (int, float, bool, str, type(None))


def save(optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """scheduler: may be None."""
    from megatron.core.rerun_state_machine import get_rerun_state_machine
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    parts = optimizers.parts(optimizer)
    machine = get_rerun_state_machine()
    return {
        "groups": [[_values(group) for group in part.optimizer.param_groups] for part in parts],
        "moments": [optimizers.save(part) for part in parts],
        "scalers": [_scaler(part).state_dict() if _scaler(part) is not None else None for part in parts],
        "scheduler": {name: value for name, value in _attributes(scheduler).items() if isinstance(value, _PLAIN)},
        "rerun": {name: getattr(machine, name) for name in _RERUN},
        "rng": get_cuda_rng_tracker().get_states(),
    }


def load(optimizer: Any, scheduler: Any, saved: dict[str, Any]) -> None:
    from megatron.core.rerun_state_machine import get_rerun_state_machine
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    machine = get_rerun_state_machine()
    for name, value in saved["rerun"].items():
        setattr(machine, name, value)
    for name, value in saved["scheduler"].items():  # all of it: a loaded checkpoint may have changed the schedule
        setattr(scheduler, name, value)
    of_parts = zip(saved["groups"], saved["moments"], saved["scalers"], strict=True)
    for part, (groups, moments, scaler) in zip(optimizers.parts(optimizer), of_parts, strict=True):
        optimizers.load(part, moments)
        for group, values in zip(part.optimizer.param_groups, groups, strict=True):
            for name, value in values.items():
                if torch.is_tensor(group.get(name)) and torch.is_tensor(value):
                    group[name].copy_(value)
                else:
                    group[name] = value
            if "step" in group and "step" not in values:
                del group["step"]  # a FusedAdam before its first step
        if scaler is not None:
            _scaler(part).load_state_dict(scaler)
    get_cuda_rng_tracker().set_states(saved["rng"])


def counters(args: Any) -> dict[str, int]:
    """Counters of samples in `args`, which are Megatron's."""
    return {name: getattr(args, name) for name in COUNTERS if hasattr(args, name)}


def set_counters(args: Any, saved: dict[str, int]) -> None:
    """Put counters of samples into `args`, and the number of micro-batches that follows from them."""
    from megatron.core.num_microbatches_calculator import update_num_microbatches

    for name, value in saved.items():
        setattr(args, name, value)
    update_num_microbatches(args.consumed_train_samples, consistency_check=False)


def _attributes(scheduler: Any) -> dict[str, Any]:
    return {} if scheduler is None else vars(scheduler)


def _scaler(part: Any) -> Any:
    return getattr(part, "grad_scaler", None)


def _values(group: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in group.items()
        if name != "params"
        and (
            isinstance(value, _PLAIN)
            or torch.is_tensor(value)
            or (isinstance(value, (tuple, list)) and all(isinstance(item, _PLAIN) for item in value))
        )
    }
