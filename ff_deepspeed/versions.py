"""The versions of DeepSpeed that can be protected, and a check of the objects of all others.

| what                                                               | since  | used by        |
| ---                                                                | ---    | ---            |
| gradients are divided by the accumulation steps at the loss        | 0.19   | recording      |
| an optimizer is asked whether its backward pass is the last one    | 0.19   | unused         |
| ZeRO 1 and 2 keep gradients in buffers that are flat already       | 0.19   | reset          |
| an offloaded optimizer knows whose gradients are accumulated       | 0.19   | reset          |
| ZeRO 3 knows which modules are in their backward pass              | 0.19   | stage3.reset   |
| modules note parameters that are computed again                    | 0.19   | stage3.reset   |
| bodies of GatheredParameters are counted                           | 0.19   | stage3.reset   |
| features that keep state which nobody has looked at (`_REMOVED`)   | until 0.18 | support    |

Tests run with `TESTED`. Another version, newer or between them, runs if it has everything that is read or reset, and
if its objects have no attribute that is not in `ff_deepspeed.known`. Else it is refused by the attribute's
name: what nobody has looked at may be state.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from ff_core.errors import UnsupportedError
from ff_deepspeed import known
from ff_deepspeed.stage3 import layout

OLDEST = "0.18.9"
"""The oldest that is allowed: its sources were read for `ff_deepspeed.known`."""
TESTED = ("0.19.8",)

#: Keys of a configuration that 0.19 refuses itself.
_REMOVED = (
    "amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting",
    "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
)  # fmt: skip
_REMOVED_FROM_ZERO = ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")

_ENGINE = (
    "basic_optimizer", "expert_data_parallel_group", "gate_modules", "global_samples", "global_steps", "losses",
    "micro_steps", "moe_layers", "optimizer", "seq_data_parallel_group", "skipped_steps", "timers", "tput_timer",
    "_is_gradient_accumulation_boundary", "_manual_backward_expected", "_running_engine_backward", "_step_applied",
)  # fmt: skip
#: What the state map and the reset use of each optimizer of DeepSpeed's; of ZeRO 3: ff_deepspeed.stage3.layout.
_WRAPPERS = {
    "DeepSpeedZeroOptimizer": (
        "all_grad_tensors", "averaged_gradients", "bit16_groups", "bit16_groups_flat", "cpu_offload",
        "extra_large_param_to_reduce", "get_param_id", "ipg_buckets", "loss_scaler", "micro_step_id", "overflow",
        "parallel_partitioned_bit16_groups", "params_already_reduced", "previous_reduced_grads",
        "real_dp_process_group", "reset_cpu_buffers", "reset_partition_gradient_structures",
        "reduce_independent_p_g_buckets_and_remove_grads", "single_partition_of_fp32_groups", "update_lp_params",
        "_backward_hook_state", "_release_ipg_buffers",
    ),
    "BF16_Optimizer": (
        "bf16_groups", "bf16_groups_flat", "clear_hp_grads", "fp32_groups_flat_partition", "update_lp_params",
    ),
    "FP16_UnfusedOptimizer": ("fp16_groups", "fp32_groups", "loss_scale_config", "overflow"),
    "FP16_Optimizer": (
        "flatten_grad_norm_mask_list", "fp16_groups", "fp16_groups_flat", "fp32_groups_flat", "has_executed_step",
        "loss_scale_config", "overflow",
    ),
}  # fmt: skip


def check() -> None:
    """Raises UnsupportedError if this process's DeepSpeed is older than all that can be protected."""
    found = installed()
    if _number(found) < _number(OLDEST):
        raise UnsupportedError(
            f"DeepSpeed {found} cannot be protected; allowed: {OLDEST} and newer, tested: {' and '.join(TESTED)}. "
            f"{_remedy()}"
        )


def installed() -> str:
    import deepspeed

    version: str = deepspeed.__version__
    return version


def is_newer() -> bool:
    """Whether it is 0.19 or later."""
    return _number(installed()) >= [0, 19]


def obstacles_in(fields: dict[str, Any]) -> Iterator[str]:
    """fields: a whole configuration. What only older versions do, a sentence each."""
    zero = fields.get("zero_optimization")
    sections = (
        ("", fields, _REMOVED),
        ("zero_optimization.", zero if isinstance(zero, dict) else {}, _REMOVED_FROM_ZERO),
    )
    for prefix, section, names in sections:
        for name in (name for name in names if _is_on(section.get(name))):
            yield f"{prefix}{name} is not supported: DeepSpeed 0.19 has dropped it; remove it"


def _is_on(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("enabled", bool(value)))
    return bool(value) and value != -1  # "mics_shard_size": -1 is off


def missing(engine: Any) -> list[str]:
    """Names of what is read or reset and what this DeepSpeed does not have where it was."""
    optimizer = engine.optimizer
    lacking = list(layout.lacking("DeepSpeedEngine", engine, _ENGINE))
    for kind in (kind.__name__ for kind in type(optimizer).__mro__):
        lacking += layout.lacking(kind, optimizer, _WRAPPERS.get(kind, ()))
    if layout.is_stage3(optimizer):
        lacking += layout.missing(optimizer, is_newer=is_newer())
    return lacking


def words(engine: Any) -> Iterator[str]:
    """Why the DeepSpeed of this process cannot be protected although it is not too old, a sentence each."""
    lacking = missing(engine)
    for name in lacking:
        yield f"DeepSpeed {installed()} has no {name}, which FFTrainer reads or resets. {_remedy()}"
    if not lacking and installed().partition("+")[0] not in TESTED:
        for name in known.unknown(engine):
            yield f"DeepSpeed {installed()} has {name}, which FFTrainer does not know: it may be state. {_remedy()}"


def is_last_backward(optimizer: Any) -> bool:
    """Whether the backward pass that runs belongs to the last micro-batch of its step."""
    asked = optimizer.is_gradient_accumulation_boundary
    return bool(asked() if callable(asked) else asked)


def own_loss_obstacle(sizes: dict[str, int]) -> str | None:
    """Why the gradients of a loss of the script's own cannot be given again, None if they can. sizes: of a call."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    prologue = getattr(DeepSpeedEngine, "_backward_prologue_per_tensor", None)
    scales = prologue is not None and "_scale_wrt_gas" in inspect.unwrap(prologue).__code__.co_names
    if not scales or sizes.get("gradient_accumulation_steps", 1) == 1:
        return None
    return (
        f"the loss is no output of engine(...), and DeepSpeed {installed()} divides gradients by the accumulation "
        "steps where they enter the model: they would be divided twice. Let the model return the loss, or install a "
        f"DeepSpeed that divides the loss: pip install 'deepspeed=={TESTED[-1]}'"
    )


def forget(owner: Any, method: str) -> None:
    """Call what only newer versions have to forget."""
    if hasattr(owner, method):
        getattr(owner, method)()


def _remedy() -> str:
    return f"Install one that was tested: pip install 'deepspeed=={TESTED[-1]}'"


def _number(version: str) -> list[int]:
    """ "0.18.9+abc" -> [0, 18, 9]; what is no number counts as 0."""
    return [int(part) if part.isdigit() else 0 for part in version.partition("+")[0].split(".")]
