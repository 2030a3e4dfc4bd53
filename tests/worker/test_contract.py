"""What every `AdapterSession` does, the real one and the one in memory that the adapters' tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
import torch.distributed as dist

from ff_core.contract.adapter import Held, TensorSpec
from ff_core.errors import FailoverError, FailoverInterrupt
from ff_core.state import frames
from ff_core.worker.interface import AdapterSession
from tests.deepspeed.fake_session import FakeSession, Interrupter
from tests.remedies import SHOWN
from tests.worker.one_rank import OneRank

SIZE = 5000


class Trainer:
    """An adapter whose tensor and scalar tell its version."""

    name = "contract"
    repeats_script = True
    remedies = SHOWN

    def __init__(self) -> None:
        self.weights = torch.zeros(SIZE)
        self.count = 0
        self.dropped = 0

    def tensors(self) -> list[TensorSpec]:
        return [TensorSpec("weights", self.weights, Held.UNIQUE)]

    def only_stepped(self) -> list[Any]:
        return []

    def replicas(self) -> list[Any]:
        return []

    def hyperparameters(self) -> list[Any]:
        return []

    def peers(self) -> list[int] | None:
        return None

    def scalars(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        self.count = scalars["count"]

    def drop_iteration(self) -> None:
        self.dropped += 1

    def rebuild(self, source_rank: int | None, newcomers: list[int], restored: list[int]) -> None:
        pass

    def iterate(self, session: AdapterSession, seal: bool = True) -> None:
        with session.step():
            self.step()
        if seal:
            session.seal()

    def step(self) -> None:
        self.weights += 1
        self.count += 1

    def is_at(self, version: int) -> bool:
        return self.count == version and bool((self.weights == version).all())


class Job(Protocol):
    """One rank of a job."""

    session: AdapterSession

    def lose(self) -> None:
        """Another rank dies."""


class Memory:
    """Job of a FakeSession."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self.interrupter = Interrupter()
        self.fake = FakeSession(0, 1, self.interrupter, saved)
        self.session: AdapterSession = self.fake

    def lose(self) -> None:
        self.interrupter.epoch += 1


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The session in memory agrees on versions by a collective."""
    path: Path = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", store=dist.FileStore(str(path), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=["real", "memory"])
def jobs(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Callable[[], Job], Callable[[Job], Job]]]:
    """(begin a job, replace a job's rank by a newcomer)."""
    made: list[OneRank] = []
    monkeypatch.setattr(frames, "of_script", lambda: iter(()))  # a test is no script that a newcomer runs again

    def real() -> Job:
        made.append(OneRank())
        return made[-1]

    def real_newcomer(dead: Job) -> Job:
        assert isinstance(dead, OneRank)
        made.append(OneRank(dead.arena))
        return made[-1]

    def memory_newcomer(dead: Job) -> Job:
        assert isinstance(dead, Memory)
        return Memory(dead.fake.slots[dead.fake.version])

    if request.param == "memory":
        request.getfixturevalue("group")
        yield Memory, memory_newcomer
    else:
        yield real, real_newcomer
    for job in made:
        job.close()


Jobs = tuple[Callable[[], Job], Callable[[Job], Job]]


def started(jobs: Jobs, iterations: int = 0) -> tuple[Job, AdapterSession, Trainer]:
    job, trainer = jobs[0](), Trainer()
    job.session.attach(trainer)
    assert job.session.start_training() == 0
    for _ in range(iterations):
        trainer.iterate(job.session)
    return job, job.session, trainer


def test_nothing_is_missing(jobs: Jobs) -> None:
    session = jobs[0]().session
    asked = [name for name in vars(AdapterSession) if not name.startswith("_")]
    assert len(asked) > 20 and [name for name in asked if not hasattr(session, name)] == []


def test_before_training(jobs: Jobs) -> None:
    session = jobs[0]().session
    assert (session.rank, session.epoch, session.version) == (0, 0, -1)
    assert not session.training and not session.is_newcomer
    session.check()
    session.finish()
    with pytest.raises(FailoverError, match="attach"):
        session.start_training()
    with pytest.raises(FailoverError, match="newcomer"):
        session.saved_scalars()
    with pytest.raises(FailoverError, match="start_training"):
        session.recover(FailoverInterrupt(1))
    session.attach(Trainer())
    with pytest.raises(FailoverError, match="second engine"):
        session.attach(Trainer())


def test_a_step_makes_a_version(jobs: Jobs) -> None:
    _, session, trainer = started(jobs)
    assert session.training and session.version == 0
    with session.step():
        trainer.step()
        assert session.version == 0
    assert session.version == 1
    with pytest.raises(FailoverError, match="second optimizer step"):
        session.step().__enter__()
    session.seal()
    session.seal()
    trainer.iterate(session)
    assert session.version == session.start_training() == 2
    assert session.oldest_needed <= session.committed_version <= 2
    session.finish()
    assert session.version == 2


def test_a_death_between_iterations_keeps_the_sealed_version(jobs: Jobs) -> None:
    job, session, trainer = started(jobs, 2)
    job.lose()
    with pytest.raises(FailoverInterrupt) as interrupt:
        session.check()
    epoch = interrupt.value.epoch
    del interrupt
    assert epoch == session.epoch + 1
    assert session.recover(FailoverInterrupt(epoch)) == session.version == 2
    assert session.epoch == epoch and trainer.is_at(2) and trainer.dropped == 1
    session.check()
    trainer.iterate(session)
    session.finish()
    assert session.version == 3 and trainer.is_at(3)


def test_a_death_within_a_step_goes_back_behind_it(jobs: Jobs) -> None:
    job, session, trainer = started(jobs, 2)
    with pytest.raises(FailoverInterrupt), session.step():
        trainer.step()
        trainer.weights[0] = float("nan")
        job.lose()
    assert session.recover(FailoverInterrupt(1)) == session.version == 2
    assert trainer.is_at(2)
    trainer.iterate(session)
    assert session.version == 3 and trainer.is_at(3)


def test_a_step_that_was_not_sealed_does_not_count(jobs: Jobs) -> None:
    job, session, trainer = started(jobs, 2)
    trainer.iterate(session, seal=False)
    assert session.version == 3
    job.lose()
    with pytest.raises(FailoverInterrupt):
        session.seal()
    assert session.recover(FailoverInterrupt(1)) == 2 and trainer.is_at(2)


def test_one_death_after_another(jobs: Jobs) -> None:
    job, session, trainer = started(jobs, 1)
    for version in (1, 2, 3):
        job.lose()
        assert session.recover(FailoverInterrupt(version)) == version and trainer.is_at(version)
        trainer.iterate(session)
    session.finish()
    assert session.epoch == 3 and trainer.is_at(4)


def test_a_newcomer_takes_over(jobs: Jobs) -> None:
    dead, before, _ = started(jobs, 3)
    before.finish()  # what it has is committed
    session, trainer = jobs[1](dead).session, Trainer()
    assert session.is_newcomer and not session.training
    assert session.saved_scalars() == {"count": 3}
    session.attach(trainer)
    assert session.is_newcomer and session.start_training() == 3
    assert session.training and not session.is_newcomer and trainer.is_at(3)
    trainer.iterate(session)
    session.finish()
    assert session.version == 4 and trainer.is_at(4)
