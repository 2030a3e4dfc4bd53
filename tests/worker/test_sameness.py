"""Ranks that must be alike are compared before their steps: here ranks are threads, and collectives a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.comm import exchange
from ff_core.config.schema import FailoverConfig
from ff_core.contract.adapter import Replicas
from ff_core.errors import DifferenceError, FailoverError, UnsupportedError
from ff_core.state import hyperparameters, variables
from ff_core.worker.sameness import Sameness
from tests.remedies import SHOWN

SIZE = 3
CLOSELY = 11


class World:
    """Collectives among SIZE threads. asked: how often a rank has asked without waiting."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._barrier = threading.Barrier(SIZE, timeout=20)
        self._given: list[Any] = [None] * SIZE
        self.asked = 0

    def _all(self, value: Any) -> list[Any]:
        self._given[self._mine.rank] = value
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        return given

    def gather_bytes(self, data: bytes, group: Any = None) -> list[bytes]:
        return self._all(data)

    def alike(self, numbers: torch.Tensor, group: Any = None) -> Any:
        self.asked += 1
        rows = self._all(numbers.clone())
        different = [i for i in range(len(numbers)) if len({int(row[i]) for row in rows}) > 1]
        return SimpleNamespace(different=lambda: different)

    def run(self, body: Callable[[int], Any]) -> list[Any]:
        """What `body(rank)` returns or raises, by rank."""

        def one(rank: int) -> Any:
            self._mine.rank = rank
            try:
                return body(rank)
            except FailoverError as error:
                return error

        with ThreadPoolExecutor(SIZE) as pool:
            return list(pool.map(one, range(SIZE)))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(exchange, "gather_bytes", made.gather_bytes)
    monkeypatch.setattr(exchange, "Alike", made.alike)
    return made


class Trainer:
    """An adapter, as far as it is asked."""

    remedies = SHOWN

    def __init__(self) -> None:
        self.group = {"params": [], "lr": 0.1, "weight_decay": 0.0}
        self.weight = torch.ones(5)

    def hyperparameters(self) -> list[dict[str, Any]]:
        return [self.group]

    def replicas(self) -> list[Replicas]:
        return [Replicas(None, list(range(SIZE)), [("layer.bias", torch.ones(2)), ("layer.weight", self.weight)])]


def made(rank: int) -> tuple[Sameness, Trainer]:
    trainer = Trainer()
    parts: Any = SimpleNamespace(rank=rank, world_size=SIZE, fence=None)
    notes = memoryview(bytearray(hyperparameters.BYTES))
    return Sameness(parts, trainer, notes, FailoverConfig(interval=1), lambda: None), trainer  # type: ignore[arg-type]


def after_a_failure(rank: int, version: int = 5) -> tuple[Sameness, Trainer]:
    """Rank 1 is a replacement."""
    sameness, trainer = made(rank)
    if rank == 1:
        sameness.joined(version, {})
    else:
        sameness.recovered(version, {})
    return sameness, trainer


def test_a_replacement_with_another_learning_rate(world: World) -> None:
    def body(rank: int) -> None:
        sameness, trainer = after_a_failure(rank)
        sameness.before_step(6)
        trainer.group["lr"] = 0.1 if rank == 1 else 0.05
        sameness.before_step(7)

    for error in world.run(body):
        assert isinstance(error, DifferenceError)
        assert "make step 7" in str(error) and "in version 5" in str(error).lower()
        assert "lr of parameter group 0 is 0.1 on rank 1 (a replacement) and 0.05 on ranks 0, 2" in str(error)
        assert str(error).endswith("from <counter>, or save its count: <save>")


@pytest.mark.parametrize(("what", "fails"), [("anew", True), ("alike", False), ("own", False), ("length", False)])
def test_a_count_that_a_replacement_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str, fails: bool
) -> None:
    """own: each rank counts something of its own.  length: equal in one version by chance."""
    now = threading.local()
    monkeypatch.setattr(variables.of_process, "counts", lambda: {"train().step": now.value})

    def body(rank: int) -> None:
        sameness, _ = made(rank)
        before = {"train().step": 5 + (rank if what == "own" else 0)}
        (sameness.joined if rank == 1 else sameness.recovered)(5, before)
        for step in range(6, 12):
            counted = {"anew": step - 5 if rank == 1 else step, "alike": step, "own": step + rank}
            now.value = counted.get(what, 7 * rank * step % 5)
            sameness.before_step(step)

    errors = world.run(body)
    if not fails:
        assert errors == [None, None, None]
        return
    for error in errors:
        assert isinstance(error, DifferenceError)
        assert "train().step is 8 on ranks 0, 2 and 3 on rank 1 (a replacement)" in str(error)
        assert "version 5" in str(error) and "Count by <counter>, or save the count: <save>" in str(error)


def test_long_after_the_failure_it_is_told_one_step_later(world: World) -> None:
    def body(rank: int) -> int:
        sameness, trainer = after_a_failure(rank)
        for step in range(6, 40):
            trainer.group["weight_decay"] = 0.5 if step == 30 and rank == 2 else 0.0
            try:
                sameness.before_step(step)
            except DifferenceError as error:
                assert "have made step 30" in str(error) and "0.5 on rank 2 and" in str(error)
                return step
        return 0

    assert world.run(body) == [31, 31, 31]
    assert world.asked == SIZE * (30 - 5 - CLOSELY)


def test_the_last_step_is_looked_at_when_the_loop_ends(world: World) -> None:
    def body(rank: int) -> None:
        sameness, trainer = after_a_failure(rank)
        for step in range(6, 30):
            sameness.before_step(step)
        trainer.group["lr"] = float(rank)
        sameness.before_step(30)
        sameness.settle()

    assert all(isinstance(error, DifferenceError) for error in world.run(body))


def test_ranks_that_had_different_ones_before_keep_them(world: World) -> None:
    def body(rank: int) -> None:
        sameness, trainer = made(rank)
        trainer.group["lr"] = float(rank)
        sameness.recovered(5, {})
        for step in range(6, 30):
            trainer.group["lr"] = step * (rank + 1.0)
            sameness.before_step(step)
        sameness.settle()

    assert world.run(body) == [None] * SIZE


def test_nothing_is_compared_before_a_failure(world: World) -> None:
    def body(rank: int) -> None:
        sameness, trainer = made(rank)
        for step in range(1, 30):
            trainer.group["lr"] = step * (rank + 1.0)
            sameness.before_step(step)

    assert world.run(body) == [None] * SIZE
    assert world.asked == SIZE  # the weights, before step 1


def test_a_step_that_is_made_again_with_another_value(world: World) -> None:
    """All ranks count twice: they agree with each other, not with the first attempt."""

    def body(rank: int) -> None:
        sameness, trainer = made(rank)
        for step in range(1, 4):
            trainer.group["lr"] = float(step)
            sameness.before_step(step)
        trainer.group["lr"] = 2.0
        sameness.recovered(2, {})
        trainer.group["lr"] = 4.0
        sameness.before_step(3)

    for error in world.run(body):
        assert isinstance(error, DifferenceError) and "to repeat step 3" in str(error)


def test_weights_after_a_failure(world: World) -> None:
    def body(rank: int) -> None:
        sameness, trainer = after_a_failure(rank)
        trainer.weight[3] += float(rank == 1)
        sameness.before_step(6)

    for error in world.run(body):
        assert isinstance(error, DifferenceError)
        assert "layer.weight differs on rank 1 (a replacement), before step 6" in str(error)
        assert "bias" not in str(error)


@pytest.mark.parametrize(
    ("failed", "step", "kind"),
    [(False, 1, UnsupportedError), (False, 256, DifferenceError), (True, 256, DifferenceError)],
)
def test_weights_now_and_then(world: World, failed: bool, step: int, kind: type[FailoverError]) -> None:
    def body(rank: int) -> None:
        sameness, trainer = after_a_failure(rank) if failed else made(rank)
        trainer.weight[0] -= float(rank == 2)
        sameness.before_step(step)
        sameness.settle()

    for error in world.run(body):
        assert isinstance(error, kind) and "layer.weight differs on rank 2, before" in str(error)
