"""Which ranks hold the same: data-parallel ranks, and for experts those of the experts' own data-parallel group.

Where state is not sharded, dense parameters (and their optimizer's state) are the same on all data-parallel and
context-parallel ranks. An expert's are the same on fewer, because expert parallelism spreads experts over them:

    4 ranks, EP2:   dense state on {0, 1, 2, 3};   experts 0, 1 on {0, 2};   experts 2, 3 on {1, 3}

ff_core wants one set of peers that have everything redundant of a rank. That is the smaller of the two groups, if it
lies in the larger one. If it does not, or if an expert is on one rank only, experts count as unique to the rank. That
is right in any case, and costs a copy to the neighbour.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ff_core.contract.adapter import Held, Replicas


class Redundancy:
    """Of the DDP chunks `model`. group: the ProcessGroup whose ranks have the same redundant state."""

    def __init__(self, model: list[Any]) -> None:
        dense, experts = model[0].dp_cp_group, model[0].expt_dp_group
        self.group, self._experts = dense, True
        if any(is_expert(p) for chunk in model for p in chunk.parameters()):
            wide, narrow = (set(dist.get_process_group_ranks(group)) for group in (dense, experts))
            if len(narrow) > 1 and narrow <= wide:
                self.group = experts
            else:
                self._experts = wide <= narrow
        self.size: int = self.group.size()
        self._model, self._groups = model, {False: dense, True: experts}

    def replicas(self) -> list[Replicas]:
        """The weights of dense layers, and those of experts, with the ranks that have them too."""
        found: dict[bool, list[tuple[str, torch.Tensor]]] = {False: [], True: []}
        for number, chunk in enumerate(self._model):
            for name, p in chunk.named_parameters():
                if type(p.data) is torch.Tensor:  # others, as of fp8, have no bits that torch could show
                    found[is_expert(p)].append((name if len(self._model) == 1 else f"{name} of chunk {number}", p.data))
        return [
            Replicas(self._groups[kind], list(dist.get_process_group_ranks(self._groups[kind])), tensors)
            for kind, tensors in found.items()
            if tensors
        ]

    def held(self, experts: bool, redundant: Held) -> tuple[Held, str]:
        """How state that is not sharded is held (`redundant` or UNIQUE), and over whom. experts: it is of experts."""
        if self.size == 1 or (experts and not self._experts):
            return Held.UNIQUE, ""
        return redundant, f"data-parallel, {self.size} ranks"


def is_expert(p: Any) -> bool:
    """Whether the parameter belongs to an expert: megatron-core keeps it out of the dense gradients' reduction."""
    return not getattr(p, "allreduce", True)


def of_experts(part: Any) -> bool:
    """Whether the Megatron optimizer `part` updates experts (one updates either experts or none)."""
    return any(group.get("is_expert_parallel", False) for group in part.optimizer.param_groups)
