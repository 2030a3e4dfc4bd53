"""What is not copied comes back here: weights from the masters, frozen parameters and buffers from the peers.

Every rank calls these functions in the same order; the groups work again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ff_core.contract.adapter import TensorSpec
from ff_core.state import peers


def weights_from_masters(engine: Any, restored: list[int]) -> None:
    """ZeRO-1 and 2: the bf16 or fp16 weights of the ranks in `restored`, cast from the fp32 partitions of all.

    A rank that kept its live tensors has the weights, too, so it only sends its own part of them; where most ranks were
    restored, all gather as after a step. A no-op where weights are copied themselves.
    """
    optimizer = engine.optimizer
    if not hasattr(optimizer, "update_lp_params"):
        return
    most = 2 * len(restored) > dist.get_world_size()  # the same on every rank, whatever its groups
    if most or not hasattr(optimizer, "parallel_partitioned_bit16_groups"):  # not ZeRO-1 or 2: BF16_Optimizer
        optimizer.update_lp_params()
        return
    me, pending = dist.get_rank(), []
    for group, parts, master in zip(
        optimizer.real_dp_process_group,
        optimizer.parallel_partitioned_bit16_groups,
        optimizer.single_partition_of_fp32_groups,
        strict=True,
    ):
        ranks = dist.get_process_group_ranks(group)
        own = parts[ranks.index(me)].detach()
        if me in restored:
            own.copy_(master.detach())
        for rank in (rank for rank in restored if rank in ranks):
            everybodys = [part.detach() for part in parts] if rank == me else None
            pending.append(dist.gather(own, everybodys, dst=rank, group=group, async_op=True))
    for work in pending:
        work.wait()


def from_peers(
    specs: list[TensorSpec], source: int, newcomers: list[int], rank: int, group: Any = None
) -> dict[str, torch.Tensor]:
    """Broadcast REPLICATED and CONSTANT tensors of `specs` from global rank `source` in `group` (None: all ranks).

    A newcomer takes REPLICATED tensors and frozen parameters in place; survivors keep theirs. Returns, in a newcomer,
    what arrived for the constant buffers: name of the spec -> tensor, for `Buffers.load` to decide; else {}.
    """
    arrived: dict[str, torch.Tensor] = {}
    for spec, value in peers.broadcast(peers.redundant(specs), source, group):
        if rank not in newcomers:
            continue
        if spec.name.startswith("buffer."):
            arrived[spec.name.removeprefix("buffer.")] = value
        else:
            spec.tensor.copy_(value)
    return arrived
