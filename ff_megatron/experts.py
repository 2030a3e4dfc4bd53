"""What mixtures of experts and multi-token prediction remember between forwards, outside parameters and buffers.

Routers' buffers (expert_bias, tokens per expert) are saved with every version like all buffers that forward changes.
"""

from __future__ import annotations

from typing import Any

#: Of a shared expert that overlaps with dispatching: what one of its calls leaves for the next one.
_CACHED = ("cached_fc1_input", "cached_fc2_input", "cached_fc2_output", "cached_output")

#: Of multi-token prediction's log: in megatron-core 0.16, and in 0.19.
_SUMS = {"values", "loss_values", "correct_values", "total_values"}


def reset(model: list[Any]) -> None:
    """Forget the interrupted iteration: sums of auxiliary losses for the log, zero after every complete iteration, and
    intermediate results of shared experts, of which megatron-core asserts that there are none."""
    from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    clear_aux_losses_tracker()
    for name in _SUMS & MTPLossLoggingHelper.tracker.keys():
        MTPLossLoggingHelper.tracker[name].zero_()
    for chunk in model:
        for module in chunk.modules():
            if hasattr(module, "cached_fc1_input"):
                for name in _CACHED:
                    setattr(module, name, None)
