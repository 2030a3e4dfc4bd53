"""Where DeepSpeed keeps what ZeRO-3 needs: the attributes that this package reads or writes, and a check of them.

Most are private. A DeepSpeed that lacks one is refused by the attribute's name, before training: a reset that
misses its target would be a difference that nobody sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

_OPTIMIZER = (
    *("fp16_groups", "fp16_partitioned_groups_flat", "fp32_partitioned_groups_flat", "sub_group_to_group_id"),
    *("parameter_offload", "persistent_parameters", "ipg_buckets", "params_already_reduced", "averaged_gradients"),
    *("micro_step_id", "param_reduce_events", "_backward_hook_state", "offload_optimizer", "loss_scaler", "overflow"),
    *("partition_grads", "partial_offload", "swap_optimizer", "params_in_nvme_and_cpu"),
)
_TWIN_FLOW = ("backup_optimizer", "subgroup_to_device")
_COORDINATOR = (
    *("inflight_param_registry", "step_id", "trace_mode", "n_available_params", "ongoing_fetch_events"),
    "ongoing_fetch_leaf_module_events",
)
_PARAMETER = (
    *("ds_id", "ds_tensor", "ds_status", "ds_active_sub_modules", "ds_persist", "is_external_param"),
    "ds_secondary_tensor",
)
_MODULE = ("_external_params",)
_NEWER_MODULE = ("ds_recompute_parameters",)
_BUCKET = ("clear_params",)


def is_stage3(optimizer: Any) -> bool:
    """Whether `optimizer` is DeepSpeed's wrapper of ZeRO-3."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    return isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3)


def is_twin_flow(optimizer: Any) -> bool:
    """Whether a part of the masters is stepped on the GPU ("ratio" below 1), by an optimizer of its own."""
    return bool(optimizer.offload_optimizer and optimizer.partial_offload != 1.0)


def inner_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """What computes steps. The first is that of the script, or of the configuration."""
    return [optimizer.optimizer, optimizer.backup_optimizer] if is_twin_flow(optimizer) else [optimizer.optimizer]


def stepped_by(optimizer: Any, sub_group: int) -> torch.optim.Optimizer:
    """Which of `inner_optimizers` steps the masters of a sub-group."""
    on_gpu = is_twin_flow(optimizer) and optimizer.subgroup_to_device[sub_group] != "cpu"
    inner: torch.optim.Optimizer = optimizer.backup_optimizer if on_gpu else optimizer.optimizer
    return inner


def missing(optimizer: Any, *, is_newer: bool) -> Iterator[str]:
    """Names of the attributes that this DeepSpeed does not have where they were. is_newer: it is 0.19 or later."""
    absent = list(lacking("DeepSpeedZeroOptimizer_Stage3", optimizer, _OPTIMIZER))
    if not absent and is_twin_flow(optimizer):
        absent = list(lacking("DeepSpeedZeroOptimizer_Stage3", optimizer, _TWIN_FLOW))
    yield from absent
    if absent:
        return
    coordinator = coordinator_of(optimizer)
    yield from lacking("", coordinator, [_private(name) for name in _COORDINATOR])
    if not callable(getattr(coordinator, "_clear_trace_structures", None)):
        yield "PartitionedParameterCoordinator._clear_trace_structures"
    if release_cache() is None:
        yield "PartitionedParameterCoordinator.__params_to_release.cache_clear"
    for parameter in optimizer.module.parameters():
        yield from lacking("parameter", parameter, _PARAMETER)
        break
    yield from lacking("module", optimizer.module, (*_MODULE, *(_NEWER_MODULE if is_newer else ())))
    for bucket in optimizer.ipg_buckets.values():
        yield from lacking("IPGBucketZ3", bucket, _BUCKET)
    from deepspeed.runtime.zero import parameter_offload

    yield from lacking("deepspeed.runtime.zero.parameter_offload", parameter_offload, ["FWD_MODULE_STACK"])


def lacking(owner: str, value: Any, names: Iterable[str]) -> Iterator[str]:
    """ "owner.name" of those of `names` that `value` does not have."""
    for name in names:
        if not hasattr(value, name):
            yield f"{owner}.{name}".lstrip(".")


def coordinator_of(optimizer: Any) -> Any:
    """What gathers and releases parameters in forward and backward."""
    return optimizer.parameter_offload.get_param_coordinator()


def private(coordinator: Any, name: str, *default: Any) -> Any:
    """The coordinator's attribute `__name`; `default` if only other versions have it."""
    return getattr(coordinator, _private(name), *default)


def set_private(coordinator: Any, name: str, value: Any) -> None:
    setattr(coordinator, _private(name), value)


def _private(name: str) -> str:
    return f"_PartitionedParameterCoordinator__{name}"


def release_cache() -> Any | None:
    """What DeepSpeed remembers about which parameters a module releases, with `cache_clear`; None if it is not found.

    It is computed from a trace and outlives it.
    """
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    function: Any = vars(PartitionedParameterCoordinator).get(_private("params_to_release"))
    while function is not None and not hasattr(function, "cache_clear"):
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        function = next((cell for cell in cells if callable(cell)), None)
    return function


def forward_stack() -> list[torch.nn.Module]:
    """The modules whose forward runs now, outermost first: one list of the process."""
    from deepspeed.runtime.zero import parameter_offload

    stack: list[torch.nn.Module] = parameter_offload.FWD_MODULE_STACK
    return stack


def trained(optimizer: Any) -> set[int]:
    """Identities of the parameters that steps change."""
    return {id(p) for group in optimizer.fp16_groups for p in group}


def masters(optimizer: Any) -> list[torch.Tensor]:
    """This rank's fp32 partition of each sub-group."""
    return list(optimizer.fp32_partitioned_groups_flat)


def derived_weights(optimizer: Any) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """(sub-group, flat partition of its weights, its masters) where the two are not the same memory, as in fp32."""
    pairs = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
    return [(i, flat, master) for i, (flat, master) in enumerate(pairs) if flat.data_ptr() != master.data_ptr()]
