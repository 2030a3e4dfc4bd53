"""A session for tests (`AdapterSession`), in this process's memory: no agents, no copy engine, no death.

It keeps the two newest versions as clones, agrees on v* with a real collective, and before it restores anything it
overwrites every tensor that it is responsible for with NaN, so that only what is really restored can come out right.
`Interrupter` raises FailoverInterrupt in front of the n-th collective of an iteration, on every rank alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from ff_core.comm import SwappableGroup
from ff_core.config.schema import FailoverConfig
from ff_core.contract.adapter import Held
from ff_core.errors import FailoverError, FailoverInterrupt
from ff_core.state import codec, registered, rng
from ff_core.state.inputs import BYTES, Inputs
from ff_deepspeed.remedies import OF_DEEPSPEED


class Interrupter:
    """Counts collectives; raises in front of number `at` (0-based) of iteration `iteration` (1-based), once."""

    def __init__(self) -> None:
        self.iteration = 0
        self.count = 0
        self.epoch = 0
        self.plan: list[tuple[int, int]] = []
        self.running = False

    def begin(self, iteration: int) -> None:
        self.iteration, self.count, self.running = iteration, 0, True

    def install(self) -> None:
        """Counts in the groups, which every collective reaches."""
        perform = SwappableGroup.perform

        def counted(group: Any, op: str, args: Any, kwargs: Any) -> Any:
            self.check()
            return perform(group, op, args, kwargs)

        SwappableGroup.perform = counted  # type: ignore[method-assign]

    def check(self) -> None:
        if not self.running:
            return
        here = (self.iteration, self.count)
        self.count += 1
        if here in self.plan:
            self.plan.remove(here)
            self.epoch += 1
            raise FailoverInterrupt(self.epoch)


class FakeSession:
    """One rank's. saved: a slot of another one's: then this rank is a newcomer."""

    def __init__(
        self, rank: int, world_size: int, interrupter: Interrupter, saved: dict[str, Any] | None = None, **config: Any
    ) -> None:
        self.interrupter = interrupter
        self.rank, self.world_size, self.epoch, self.version = rank, world_size, interrupter.epoch, -1
        self.sealed = -1
        self.adapter: Any = None
        self.may_restart = True
        self.config = FailoverConfig.from_dict({"enabled": True, **config})
        self.is_newcomer = saved is not None
        self.slots: dict[int, dict[str, Any]] = {}
        self.saved = saved
        self.recovered: list[int] = []
        self.finished = 0
        self.persisted_at: list[int] = []
        self.points: list[str] = []
        self.point_hook: Any = None
        self.skip_reset = False
        self.notes = bytearray(BYTES if saved is None else saved.get("notes", BYTES))
        self.inputs = Inputs(rank, memoryview(self.notes), OF_DEEPSPEED)
        self.behind = 0  # how much older v* is than it would have to be

    @property
    def training(self) -> bool:
        return self.version >= 0

    @property
    def committed_version(self) -> int:
        return self.version - 1

    @property
    def oldest_needed(self) -> int:
        return self.version - 2

    def configure(self, config: FailoverConfig) -> None:
        self.config = config

    def attach(self, adapter: Any) -> None:
        if self.adapter is not None:
            raise FailoverError("a second engine was made in this process")
        self.adapter = adapter

    def passes_over(self) -> None:
        assert self.is_newcomer

    def call_in_spares(self, function: str, *arguments: Any) -> None:
        pass  # there are none

    def at_end(self, callback: Any) -> None:
        pass  # `worker.py` calls what the hooks would have called

    def saved_scalars(self) -> dict[str, Any]:
        if self.saved is None:
            raise FailoverError("saved_scalars() in a process that is not a newcomer")
        return codec.decode(self.saved["blob"])["scalars"]

    def given(self, values: Any) -> None:
        if self.sealed == self.version:
            self.inputs.given(self.version + 1, values)

    def loss(self, value: torch.Tensor) -> None:
        if self.sealed == self.version:
            self.inputs.loss(self.version + 1, value)

    def given_again(self) -> None:
        self.inputs.again(self.version)

    def script_went_on(self) -> None:
        self.given_again()

    def script_again(self) -> None:
        self.inputs.again(self.version)

    def before_first_batch(self, asks: bool = True) -> None:
        pass

    def start_training(self) -> int:
        if self.version >= 0:
            return self.version
        if self.adapter is None:
            raise FailoverError("start_training() before attach()")
        self.specs = self.adapter.tensors()
        if self.saved is None:
            self.version = 0
            self._copy()
            self.seal()
            return 0
        self.inputs.take_over()
        self.version = self.sealed = self.saved["version"]
        self.slots[self.version] = self.saved
        # Rank 0 plays a survivor that holds everything; the others are newcomers.
        newcomers = list(range(1, self.world_size))
        self._restore(self.version, 0 if newcomers else None, newcomers, everything=self.rank == 0)
        self.is_newcomer = False
        return self.version

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        if self.sealed < self.version:
            raise FailoverError("a second optimizer step before the iteration was complete")
        self.inputs.check(self.version + 1)
        yield
        self.check()
        self.version += 1
        self._copy()

    def seal(self) -> None:
        self.check()
        if self.sealed == self.version:
            return
        self.sealed = self.version
        scalars, mine = self.adapter.scalars(), registered.collect()
        blob = codec.encode({"scalars": scalars, "registered": mine, "rng": rng.capture()})
        self.slots[self.version]["blob"] = blob
        for old in [v for v in self.slots if v < self.version - 1]:
            del self.slots[old]

    def recover(self, interrupt: FailoverInterrupt) -> int:
        if not self.training:
            raise FailoverError("recover() before start_training()")
        assert interrupt.__traceback__ is None
        running, self.interrupter.running = self.interrupter.running, False
        version = self._recover(interrupt)
        self.interrupter.running = running
        return version

    def _recover(self, interrupt: FailoverInterrupt) -> int:
        if not self.skip_reset:
            self.adapter.drop_iteration()
        complete = sorted(v for v, slot in self.slots.items() if "blob" in slot)
        newest = torch.tensor(complete[max(-1 - self.behind, -len(complete))])
        torch.distributed.all_reduce(newest, op=dist.ReduceOp.MIN)
        self.version = self.sealed = int(newest)
        self.epoch = interrupt.epoch
        self.recovered.append(self.version)
        for spec in self.specs:
            if spec.held is not Held.CONSTANT:
                spec.tensor.fill_(float("nan"))
        self._restore(self.version, 0, [], everything=True)
        for newer in [v for v in self.slots if v > self.version]:
            del self.slots[newer]
        return self.version

    def _restore(self, version: int, source: int | None, newcomers: list[int], everything: bool) -> None:
        """All ranks take `version` from their slots."""
        slot = self.slots[version]
        for spec in self.specs:
            if spec.name in slot["tensors"] and (everything or spec.held is Held.UNIQUE):
                spec.tensor.copy_(slot["tensors"][spec.name])
        self.adapter.rebuild(source, newcomers, list(range(self.world_size)))
        saved = codec.decode(slot["blob"])
        self.adapter.load_scalars(saved["scalars"])
        registered.load(saved["registered"])
        rng.restore(saved["rng"])

    def _copy(self) -> None:
        copied = (Held.UNIQUE, Held.REPLICATED)
        tensors = {spec.name: spec.tensor.clone() for spec in self.specs if spec.held in copied}
        self.slots[self.version] = {"version": self.version, "tensors": tensors}

    def mark(self) -> None:
        with self.step():
            pass
        self.seal()

    def left(self, version: int, *, begins: bool = False) -> None:
        raise FailoverError(f"left in iteration {version}")  # there is nobody who would end this process

    def finish(self, *, again: bool = False) -> None:
        if self.training:
            self.seal()
        self.finished += 1

    def check(self) -> None:
        if self.interrupter.epoch > self.epoch:
            raise FailoverInterrupt(self.interrupter.epoch)

    def inject(self, at: str, iteration: int | None = None) -> None:
        self.points.append(at)
        if self.point_hook is not None:
            self.point_hook(at)

    def persisted(self, path: str, version: int) -> None:
        self.persisted_at.append(version)
