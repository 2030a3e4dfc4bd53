"""MegatronAdapter: the answers to ff_core's questions about one `train()` of Megatron: ff_core.contract.adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ff_core.contract.adapter import Remedies, Replicas, TensorSpec
from ff_core.state import peers, switched
from ff_core.state.attributes import Attributes
from ff_core.state.buffers import Buffers
from ff_core.state.members import Members
from ff_core.state.modes import Modes
from ff_megatron import optimizers, rebuild, scalars, state_map
from ff_megatron.buckets import GoldenCounts
from ff_megatron.own_weights import own_weights
from ff_megatron.redundancy import Redundancy
from ff_megatron.reset import Reset


class Training(Protocol):
    """The loop around model and optimizer: where in it a version stands."""

    def save(self) -> dict[str, Any]:
        """At the end of an iteration: plain values, as `scalars` are."""

    def load(self, saved: dict[str, Any]) -> None:
        """Go back to the version that `saved` is of."""

    def drop(self) -> None:
        """The iteration that runs is void."""


class MegatronAdapter:
    """One model (its DDP chunks) and optimizer. scheduler: may be None.  config: the model's.  timers: Megatron's.
    remedies: for who has such a loop."""

    name = "megatron"
    repeats_script = True

    def __init__(
        self,
        model: list[Any],
        optimizer: Any,
        scheduler: Any,
        config: Any,
        timers: Iterable[Any],
        training: Training,
        remedies: Remedies,
    ) -> None:
        self.remedies = remedies
        self._model, self._optimizer, self._scheduler, self._training = model, optimizer, scheduler, training
        self._members = Members(model[0] if len(model) == 1 else torch.nn.ModuleList(model))
        self._buffers = Buffers(self._members)
        self._modes = Modes(self._members)
        self._attributes = Attributes(self._members)
        self._golden = GoldenCounts(model)
        self._reset = Reset(model, optimizer, config, timers)
        self._redundancy = Redundancy(model)
        for chunk in model:
            switched.leave_out(chunk)
        self._specs: list[TensorSpec] = []
        self._own_weights: list[tuple[str, torch.Tensor]] = []

    def tensors(self) -> list[TensorSpec]:
        numbers = [optimizers.prepare(part) for part in optimizers.parts(self._optimizer)]
        self._buffers.begin()
        self._attributes.begin()
        self._specs = state_map.declare(self._model, self._optimizer, numbers, self._redundancy)
        self._own_weights = own_weights(self._model, self._optimizer, self._specs)
        return self._specs

    def only_stepped(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self._own_weights

    def replicas(self) -> list[Replicas]:
        return self._redundancy.replicas()

    def hyperparameters(self) -> list[dict[str, Any]]:
        return [group for part in optimizers.parts(self._optimizer) for group in part.optimizer.param_groups]

    def peers(self) -> list[int] | None:
        group = self._redundancy.group
        if not peers.redundant(self._specs) or group.size() == dist.get_world_size():
            return None
        return list(dist.get_process_group_ranks(group))

    def scalars(self) -> dict[str, Any]:
        self._members.version_ends()
        return {
            "trainer": scalars.save(self._optimizer, self._scheduler),
            "golden": self._golden.save(),
            "buffers": self._buffers.save(),
            "modes": self._modes.save(),
            "attributes": self._attributes.save(),
            "training": self._training.save(),
        }

    def load_scalars(self, saved: dict[str, Any]) -> None:
        self._modes.load(saved["modes"])
        self._attributes.load(saved["attributes"])
        scalars.load(self._optimizer, self._scheduler, saved["trainer"])
        self._golden.load(saved["golden"])
        self._buffers.load(saved["buffers"], {})
        self._training.load(saved["training"])

    def drop_iteration(self) -> None:
        self._reset.run()
        self._training.drop()

    def rebuild(self, source_rank: int | None, newcomers: list[int], restored: list[int]) -> None:
        rebuild.from_peers(self._specs, self._redundancy.group, newcomers)
        rebuild.weights_from_masters(self._model, self._optimizer)
