"""What is not copied comes back here: weights from the masters. Every rank calls this; the groups work again."""

from __future__ import annotations

from typing import Any

from ff_megatron import optimizers


def weights_from_masters(model: list[Any], optimizer: Any) -> None:
    """Cast the masters into the weights; under DistributedOptimizer the data-parallel ranks then gather each other's.

    Under overlap_param_gather this also makes good the gather that would have come with the next forward.
    """
    for part in optimizers.parts(optimizer):
        if hasattr(part, "_copy_main_params_to_model_params"):
            part._copy_main_params_to_model_params()
    for chunk in model:
        if chunk.ddp_config.use_distributed_optimizer:
            chunk.start_param_sync(force_sync=True)
