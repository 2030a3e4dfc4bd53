"""Context parallelism without TransformerEngine: megatron-core's own attention takes whole sequences only.

Every rank has its part of each sequence, as megatron-core's get_batch_on_this_cp_rank cuts it, and gathers the keys and
values of the others. Positions, masks and the reduction of gradients are as under TransformerEngine's attention; how
keys and values travel is not.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.utils import get_batch_on_this_cp_rank


class GatheringAttention(DotProductAttention):
    """Attention of the local part of the queries to all keys and values. Shapes [sequence, batch, heads, channels]."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        whole = copy.copy(config)
        whole.context_parallel_size = 1  # what the base class wants to see
        super().__init__(whole, *args, **kwargs)

    def forward(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        group = mpu.get_context_parallel_group()
        whole = [gather_from_sequence_parallel_region(part.contiguous(), group=group) for part in (key, value)]
        return super().forward(query, *whole, *args, **kwargs)


def cut(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's part of tensors [batch, sequence]."""
    newer = "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters  # since megatron-core 0.18
    named = {"is_hybrid_cp": False} if newer else {}
    return get_batch_on_this_cp_rank(batch, cp_group=mpu.get_context_parallel_group(), **named)


def mask(length: int) -> torch.Tensor:
    """[1, 1, own queries, all keys as they are gathered], true where a key lies behind the query."""
    ranks = mpu.get_context_parallel_world_size()
    blocks = torch.arange(length).view(2 * ranks, -1)
    keys = torch.cat([torch.cat([blocks[rank], blocks[2 * ranks - 1 - rank]]) for rank in range(ranks)])
    queries = keys.view(ranks, -1)[mpu.get_context_parallel_rank()]
    return (keys[None, :] > queries[:, None])[None, None]
