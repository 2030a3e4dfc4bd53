"""DeepSpeedAdapter: the answers to ff_core's questions about one DeepSpeed engine (see ff_core.adapter)."""

from __future__ import annotations

from typing import Any, Protocol

from ff_core.adapter import TensorSpec
from ff_deepspeed import cpu_adam, moments, rebuild, scalars, state_map
from ff_deepspeed.buffers import Buffers
from ff_deepspeed.client import ClientState
from ff_deepspeed.reset import Reset


class Position(Protocol):
    """Whoever feeds the engine: knows where in the data a version stands."""

    def position(self) -> dict[str, Any]: ...

    def load_position(self, saved: dict[str, Any]) -> None: ...


class DeepSpeedAdapter:
    """One engine, from `deepspeed.initialize` on. feed: knows the data position; client: the script's client states."""

    name = "deepspeed"

    def __init__(self, engine: Any, rank: int, feed: Position, client: ClientState) -> None:
        self.engine = engine
        self.feed = feed
        self.client = client
        self._rank = rank
        self._buffers = Buffers(engine.module)
        self._reset = Reset(engine)
        self._specs: list[TensorSpec] = []
        self._from_peers: dict[str, Any] = {}
        cpu_adam.follow(engine.basic_optimizer)

    def tensors(self) -> list[TensorSpec]:
        moments.create(self.engine.basic_optimizer)
        self._buffers.begin()
        self._specs = state_map.declare(self.engine, self._buffers.changing)
        return self._specs

    def scalars(self) -> dict[str, Any]:
        return {
            "trainer": scalars.save(self.engine),
            "buffers": self._buffers.save(),
            "data": self.feed.position(),
            "client": self.client.save(),
        }

    def load_scalars(self, saved: dict[str, Any]) -> None:
        scalars.load(self.engine, saved["trainer"])
        self._buffers.load(saved["buffers"], self._from_peers)
        self._from_peers = {}
        self.client.load(saved["client"])
        self.feed.load_position(saved["data"])

    def drop_iteration(self) -> None:
        self._reset.run()

    def rebuild(self, source_rank: int | None, newcomers: list[int]) -> None:
        rebuild.weights_from_masters(self.engine)
        if source_rank is not None and newcomers:
            self._from_peers = rebuild.from_peers(self._specs, source_rank, newcomers, self._rank)
