"""What mixtures of experts and multi-token prediction remember between forwards, outside parameters and buffers.

Routers' buffers (expert_bias, tokens per expert) are saved with every version like all buffers that forward changes.
"""

from __future__ import annotations

from typing import Any

import torch

from ff_megatron import versions

#: Of a shared expert that overlaps with dispatching: what one of its calls leaves for the next one.
_CACHED = ("cached_fc1_input", "cached_fc2_input", "cached_fc2_output", "cached_output")


def reset(model: list[Any]) -> None:
    """Forget the interrupted iteration: sums of auxiliary losses for the log, zero after every complete iteration, and
    intermediate results of shared experts, of which megatron-core asserts that there are none."""
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    series = versions.series()
    series.clear_aux_losses()
    for value in MTPLossLoggingHelper.tracker.values():  # sums, and groups; the names differ between versions
        if torch.is_tensor(value):
            value.zero_()
    for chunk in model:
        for module in chunk.modules():
            if hasattr(module, "cached_fc1_input"):
                for name in _CACHED:
                    setattr(module, name, None)
                for name in series.expert_states:
                    setattr(module, name, type(getattr(module, name)).IDLE)
