"""The versions of megatron-core that can be protected, and what each has that others lack.

| what                                                    | since | used by      |
| ---                                                     | ---   | ---          |
| auxiliary losses are summed up in moe_logging           | 0.18  | experts      |
| an overlapping shared expert knows which call is next   | 0.18  | experts      |
| a bucket group knows whether its gradients are reduced  | 0.18  | buckets      |
| lengths of packed sequences are summed up for the log   | 0.18  | reset        |
| optimizers ask all ranks once, and keep the answer      | 0.19  | reset        |

A series that is not in `SERIES` is refused: somebody has to look at it first. `unknown` is the self-check: an object
with attributes that are in no row here keeps something that nobody has looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ff_core.errors import UnsupportedError

OLDEST = "0.16.1"
NEWEST = "0.19.2"
"""The oldest and the newest that tests have run with; of each series between them, the newest."""


def _clear_in_utils() -> None:
    from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker

    clear_aux_losses_tracker()


def _clear_in_logging() -> None:
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    get_moe_metrics_tracker().clear()


@dataclass(frozen=True, slots=True)
class Series:
    """One series of megatron-core.

    clear_aux_losses: makes the sums of auxiliary losses zero. flags: attributes of a bucket group, false between two
    iterations; links: others, which never change. expert_states: attributes of a shared expert that hold a member of
    an enumeration, which is IDLE between two forwards. sums: of megatron.training.training, (tensor or None, whether
    it is in use). asked_once: attributes of optimizers, made when they are first asked. layer_wise: its optimizer of
    whole parameters has been looked at.
    """

    clear_aux_losses: Callable[[], None]
    flags: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    expert_states: tuple[str, ...] = ()
    sums: tuple[tuple[str, str], ...] = ()
    asked_once: tuple[str, ...] = ()
    layer_wise: bool = False


_LENGTHS = ("_seqlen_stats_in_iteration", "_seqlen_stats_active")
_REDUCED = (("grad_reduce_finished",), ("previous_grad_reduce_bucket_group",))
SERIES = {
    "0.16": Series(_clear_in_utils, layer_wise=True),
    "0.17": Series(_clear_in_utils),
    "0.18": Series(_clear_in_logging, *_REDUCED, ("_overlap_state",), (_LENGTHS,)),
    "0.19": Series(_clear_in_logging, *_REDUCED, ("_overlap_state",), (_LENGTHS,), ("_has_grad_norm_group_cache",)),
}

#: What a bucket group of any version has.
_BUCKET_GROUP = frozenset({
    "buckets", "cached_grad_buffer_shard_list", "cached_param_buffer_shard_list", "communication_stream",
    "data_parallel_group", "ddp_config", "golden_per_param_grad_ready_counts", "grad_reduce_handle",
    "inter_distributed_optimizer_instance_group", "intra_distributed_optimizer_instance_group",
    "intra_distributed_optimizer_instance_rank", "intra_distributed_optimizer_instance_size", "is_first_batch",
    "is_last_microbatch", "next_param_gather_bucket_group", "param_gather_dispatched", "param_gather_handle",
    "param_to_bucket", "params", "per_param_grad_ready_counts",
})  # fmt: skip
_RERUN_MACHINE = frozenset({
    "checkpoint_requested", "continue_requested", "current_iteration", "data_iterator_checkpoints", "error_injector",
    "failed_validation_call", "first_iteration_complete", "initial_result", "injected_result", "large_value_counts",
    "logged_sdc_enabled", "max_values", "mode", "rerun_requested", "restart_again_requested",
    "result_rejected_tracker_filename", "saved_results", "saved_state", "state", "state_restore_func",
    "state_save_func", "stats", "suspicious_device", "suspicious_node", "validation_counts",
})  # fmt: skip


def series() -> Series:
    """What the megatron-core of this process has. Raises UnsupportedError if it is none that can be protected."""
    from megatron import core

    found: str = core.__version__
    series = SERIES.get(".".join(_release(found)[:2]))
    if series is None or _number(found) < _number(OLDEST):
        raise UnsupportedError(
            f"megatron-core {found} cannot be protected; allowed: {OLDEST} to {NEWEST}, and later releases of "
            f"{max(SERIES, key=_number)}. Install one: pip install 'megatron-core=={NEWEST}' (it needs Python 3.12 or "
            f"newer; 'megatron-core=={OLDEST}' does not), or leave --ff-failover out to train unprotected"
        )
    return series


def _release(version: str) -> list[str]:
    """ "0.19.2+5be9626" -> ["0", "19", "2"]; a candidate for a release ("0.19.0rc0") is none: ["0.19.0rc0"]."""
    parts = version.partition("+")[0].split(".")
    return parts if all(part.isdigit() for part in parts) else [version]


def _number(version: str) -> list[int]:
    return [int(part) for part in _release(version)]


def unknown(bucket_groups: list[Any]) -> list[str]:
    """Attributes of this version's objects that are in no row of this module, as words for a message."""
    from megatron.core.rerun_state_machine import get_rerun_state_machine

    known = _BUCKET_GROUP | {*series().flags, *series().links}
    looked_at = [(group, known) for group in bucket_groups] + [(get_rerun_state_machine(), _RERUN_MACHINE)]
    return sorted({f"{type(it).__qualname__} has {name!r}" for it, names in looked_at for name in {*vars(it)} - names})


def drop_sums() -> None:
    """Forget what an interrupted iteration has summed up for the log."""
    training = sys.modules.get("megatron.training.training")  # a loop of the script's own does without
    for tensor, in_use in series().sums:
        if getattr(training, in_use, False):
            getattr(training, tensor).zero_()
            setattr(training, in_use, False)
