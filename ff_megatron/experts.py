"""What layers remember between forwards and backwards, outside parameters and buffers: mixtures of experts, multi-token
prediction, sparse attention, an output layer whose gradient is deferred.

Routers' buffers (expert_bias, tokens per expert) are saved with every version like all buffers that forward changes.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ff_megatron import versions

#: Of a shared expert that overlaps with dispatching: what one of its calls leaves for the next one.
_CACHED = ("cached_fc1_input", "cached_fc2_input", "cached_fc2_output", "cached_output")
#: Of a model under --defer-embedding-wgrad-compute. Schedules empty the first one only, before the next iteration.
_DEFERRED = ("embedding_activation_buffer", "grad_output_buffer")
#: Classes with a `tracker`, which sums up losses for the log; it is zero after every complete iteration.
_TRACKERS = (
    ("megatron.core.transformer.multi_token_prediction", "MTPLossLoggingHelper"),
    ("megatron.core.transformer.experimental_attention_variant.dsa", "DSAIndexerLossLoggingHelper"),
)


def reset(model: list[Any]) -> None:
    """Forget the interrupted iteration: sums of auxiliary losses for the log, and intermediate results, of which
    megatron-core asserts that there are none."""
    series = versions.series()
    series.clear_aux_losses()
    for name, helper in _TRACKERS:
        if name in sys.modules:  # or it has summed up nothing
            for value in getattr(sys.modules[name], helper).tracker.values():  # sums, and groups; names differ
                if torch.is_tensor(value):
                    value.zero_()
    for chunk in model:
        for module in chunk.modules():
            for name in _DEFERRED:
                if getattr(module, name, None):
                    getattr(module, name).clear()
            if hasattr(module, "cached_fc1_input"):
                for name in _CACHED:
                    setattr(module, name, None)
                for name in series.expert_states:
                    setattr(module, name, type(getattr(module, name)).IDLE)
