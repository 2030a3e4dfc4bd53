"""What is not copied comes back here: state of the peers, weights from the masters.

Every rank calls these functions in the same order; the groups work again.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from ff_core.contract.adapter import TensorSpec
from ff_core.state import peers
from ff_megatron import optimizers, state_map


def from_peers(specs: list[TensorSpec], group: Any, newcomers: list[int]) -> None:
    """In `newcomers`, redundant tensors of `specs` are overwritten by those of the group's lowest other rank.

    Nothing happens in a group without newcomers, or where all are (then their own slots held everything).
    """
    ranks = dist.get_process_group_ranks(group)
    complete = [rank for rank in ranks if rank not in newcomers]
    if not complete or len(complete) == len(ranks):
        return
    me = dist.get_rank() in newcomers
    for spec, value in peers.broadcast(peers.redundant(specs), min(complete), group):
        if me:
            spec.tensor.copy_(value)


def weights_from_masters(model: list[Any], optimizer: Any) -> None:
    """Cast the masters into the weights; under DistributedOptimizer the data-parallel ranks then gather each other's.

    Under overlap_param_gather this also makes good the gather that would have come with the next forward.
    """
    for part in optimizers.parts(optimizer):
        if hasattr(part, "_copy_main_params_to_model_params"):
            part._copy_main_params_to_model_params()
    if state_map.is_layer_wise(optimizer):
        optimizer.allgather_params()
    for chunk in model:
        if chunk.ddp_config.use_distributed_optimizer:
            chunk.start_param_sync(force_sync=True)
