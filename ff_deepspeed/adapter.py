"""DeepSpeedAdapter: the answers to ff_core's questions about one DeepSpeed engine (see ff_core.contract.adapter)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ff_core.contract.adapter import Held, Replicas, TensorSpec
from ff_core.state import peers, switched
from ff_core.state.attributes import Attributes
from ff_core.state.buffers import Buffers
from ff_core.state.members import Members
from ff_core.state.modes import Modes
from ff_deepspeed import moments, rebuild, scalars, state_map, unused
from ff_deepspeed.redundancy import Redundancy
from ff_deepspeed.remedies import OF_DEEPSPEED
from ff_deepspeed.reset import Reset, forget_input_check, input_check
from ff_deepspeed.stage3 import layout
from ff_deepspeed.stage3 import rebuild as stage3_rebuild
from ff_deepspeed.stage3 import state as stage3


class Script(Protocol):
    """What is known about the script that drives the engine: where in its data a version stands, its client state."""

    repeats_script: bool
    """Its code runs again in a survivor, from the begin of an iteration."""

    def position(self) -> dict[str, Any]: ...

    def client_state(self) -> dict[str, Any]: ...

    def restored(self, saved: dict[str, Any]) -> None:
        """`saved`, scalars of a version, were put back: "data" is position(), "client" client_state()."""


class DeepSpeedAdapter:
    """One engine, from `deepspeed.initialize` on."""

    name = "deepspeed"
    remedies = OF_DEEPSPEED
    script: Script
    """Set before training starts, by whoever hands out the data."""

    def __init__(self, engine: Any, rank: int, *, weights_edited: bool = False) -> None:
        self.engine = engine
        self._rank, self._weights_edited = rank, weights_edited
        self.members = Members(engine.module)
        self.buffers = Buffers(self.members)
        self._modes = Modes(self.members, input_check(engine))
        self.attributes = Attributes(self.members)
        self._reset = Reset(engine)
        self._is_stage3 = layout.is_stage3(engine.optimizer)
        self._unused = unused.watch(engine)
        self._redundancy = Redundancy(engine)
        self._specs: list[TensorSpec] = []
        self._from_peers: dict[str, Any] = {}
        switched.leave_out(engine)

    @property
    def repeats_script(self) -> bool:
        return self.script.repeats_script

    def tensors(self) -> list[TensorSpec]:
        for inner in state_map.inner_optimizers(self.engine):
            with state_map.whole_groups(self.engine, inner):
                moments.of(inner).create()
        self._reset.begin()
        self.buffers.begin()
        self.attributes.begin()
        self._specs = state_map.declare(self.engine, self.buffers.changing, self._weights_edited)
        return self._specs

    def only_stepped(self) -> Iterable[tuple[str, torch.Tensor]]:
        if self._is_stage3:
            return stage3.written_by_steps(self.engine.optimizer, self.members.look().parameters)
        masters = state_map.partitions(self.engine.optimizer) or []
        return [*self.members.look().parameters, *((f"master.{i}", p) for i, p in enumerate(masters))]

    def replicas(self) -> list[Replicas]:
        weights = [] if self._is_stage3 else self.members.look().parameters
        others = [spec for spec in self._specs if spec.held is Held.REPLICATED and not spec.name.startswith("weight")]
        return self._redundancy.replicas(weights, [(spec.name, spec.tensor) for spec in others])

    def hyperparameters(self) -> list[dict[str, Any]]:
        return [group for inner in state_map.inner_optimizers(self.engine) for group in inner.param_groups]

    def peers(self) -> list[int] | None:
        group = self._redundancy.group
        return None if group is None or not peers.redundant(self._specs) else dist.get_process_group_ranks(group)

    def scalars(self) -> dict[str, Any]:
        self.members.version_ends()
        return {
            "trainer": scalars.save(self.engine),
            "buffers": self.buffers.save(),
            "modes": self._modes.save(),
            "attributes": self.attributes.save(),
            "with_gradients": self._unused.save() if self._unused is not None else None,
            "data": self.script.position(),
            "client": self.script.client_state(),
        }

    def load_scalars(self, saved: dict[str, Any]) -> None:
        self._modes.load(saved["modes"])
        self.attributes.load(saved["attributes"])
        scalars.load(self.engine, saved["trainer"])
        if self._unused is not None:
            self._unused.load(saved["with_gradients"])
        self.buffers.load(saved["buffers"], self._from_peers)
        self._from_peers = {}
        self.script.restored(saved)

    def stepping(self) -> None:
        """The engine's step begins. Raises UnsupportedError if it would use what no version has."""
        if self._unused is not None:
            self._unused.check()

    def stepped(self) -> None:
        if self._unused is not None:
            self._unused.stepped()

    def drop_iteration(self) -> None:
        self._reset.run()
        if self._unused is not None:
            self._unused.drop()

    def rebuild(self, source_rank: int | None, newcomers: list[int], restored: list[int]) -> None:
        forget_input_check(self.engine)
        if self._is_stage3:
            self._reset.run()  # a replacement may have gathered parameters before training
            stage3_rebuild.weights(self.engine, from_masters=not self._weights_edited and self._rank in restored)
        elif not self._weights_edited:  # else they have been copied themselves
            rebuild.weights_from_masters(self.engine, restored)
        if source_rank is None or not newcomers:
            return
        group = self._redundancy.group
        if group is not None:
            ranks = dist.get_process_group_ranks(group)
            complete = [rank for rank in ranks if rank not in newcomers]
            if not complete or len(complete) == len(ranks):
                return  # nobody here needs anything, or own slots held all
            source_rank = min(complete)
        self._from_peers = rebuild.from_peers(self._specs, source_rank, newcomers, self._rank, group)
