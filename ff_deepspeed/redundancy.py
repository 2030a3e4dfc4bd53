"""Which ranks hold the same: the data-parallel ranks, and of an expert those that hold this expert, too.

What ZeRO does not partition is the same on all ranks over which gradients are averaged. With pipelines these are the
ranks of a stage. With sequence parallelism they are the sequence-parallel ranks, too. Experts of a DeepSpeed MoE layer
are the same on fewer:

    4 ranks, ep_size=2:   dense state on {0, 1, 2, 3};   experts 0, 1 on {0, 2};   experts 2, 3 on {1, 3}

ff_core wants one set of peers that have everything redundant of a rank. That is the smallest of these groups that has
more than one rank, if it lies in all others. What is on fewer ranks than that counts as unique to the rank. It is
copied to the neighbour, which is right in any case.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parameter import Parameter

from ff_core.contract.adapter import Held, Replicas
from ff_deepspeed.pipe import state as pipe

DENSE = ""
"""The kind of what is no expert's. Other kinds are names of expert-parallel groups."""


class Redundancy:
    """Of one engine. group: the ranks that have all redundant state of this one; None: all ranks have."""

    def __init__(self, engine: Any) -> None:
        dense = pipe.group_of(engine) if pipe.is_pipeline(engine) else engine.seq_data_parallel_group
        self._groups: dict[str, Any] = {DENSE: dense}
        kinds = {kind_of(p) for p in engine.module.parameters()} - {DENSE}
        for name in sorted(kinds):  # the same order on all ranks
            self._groups[name] = engine.expert_data_parallel_group[name]
        self._ranks = {kind: dist.get_process_group_ranks(group) for kind, group in self._groups.items()}
        shared = [kind for kind, ranks in self._ranks.items() if len(ranks) > 1]
        self._smallest = min(shared, key=lambda kind: len(self._ranks[kind]), default=DENSE)
        self._peers = set(self._ranks[self._smallest])
        whole = len(self._peers) == dist.get_world_size()
        self.group: Any = None if whole else self._groups[self._smallest]

    @property
    def alone(self) -> bool:
        """Nobody else has anything of this rank."""
        return len(self._peers) == 1

    def held(self, kinds: Iterable[str], redundant: Held) -> tuple[Held, str]:
        """How a tensor that ZeRO does not partition is held, `redundant` or UNIQUE, and over whom.

        kinds: of the parameters in it.
        """
        found = set(kinds) or {DENSE}
        if self.alone or not all(self._peers <= set(self._ranks[kind]) for kind in found):
            return Held.UNIQUE, ""
        fewest = min(found, key=lambda kind: len(self._ranks[kind]))
        return redundant, f"{'data' if fewest == DENSE else 'expert-data'}-parallel, {len(self._ranks[fewest])} ranks"

    def replicas(
        self, weights: Iterable[tuple[str, torch.Tensor]], others: Iterable[tuple[str, torch.Tensor]]
    ) -> list[Replicas]:
        """Weights by who else has them, where anybody has, and what else is held as redundant."""
        found: dict[str, list[tuple[str, torch.Tensor]]] = {kind: [] for kind in self._groups}
        for name, p in weights:
            found[kind_of(p)].append((name, p))
        found[self._smallest] += others
        world = dist.get_world_size()
        return [
            Replicas(None if len(ranks) == world else self._groups[kind], list(ranks), found[kind])
            for kind, ranks in self._ranks.items()
            if found[kind] and len(ranks) > 1
        ]


def kind_of(p: torch.Tensor) -> str:
    """DENSE, or the name of the group over which the expert's experts are spread."""
    return str(p.group_name) if is_expert(p) else DENSE  # type: ignore[attr-defined]


def kinds_of(parameters: Iterable[Parameter]) -> set[str]:
    """Of a flat buffer of these parameters."""
    return {kind_of(p) for p in parameters}


def is_expert(p: torch.Tensor) -> bool:
    """Whether the parameter belongs to an expert: DeepSpeed averages its gradients over fewer ranks."""
    return not getattr(p, "allreduce", True)


def kinds_of_buffers(module: torch.nn.Module) -> dict[int, str]:
    """id of each buffer within an expert -> its kind."""
    from deepspeed.moe.experts import Experts

    kinds: dict[int, str] = {}
    for experts in (m for m in module.modules() if isinstance(m, Experts)):
        kind = next((kind_of(p) for p in experts.parameters()), DENSE)
        kinds |= {id(buffer): kind for buffer in experts.buffers()}
    return kinds
