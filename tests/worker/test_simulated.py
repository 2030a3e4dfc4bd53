"""The simulator's worker tells a session and a recovery a second time. What it says to its agent is what a real one
says: the same messages of the same versions in the same order, whatever happens to the rank."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.config.schema import FailoverConfig
from ff_core.copy.arena import ArenaLayout
from ff_core.errors import FailoverInterrupt
from ff_core.state import frames
from tests.controller.sim_memory import SimArena, SimPage
from tests.controller.sim_worker import SimWorker
from tests.worker.one_job import OneJob
from tests.worker.one_rank import OneRank
from tests.worker.test_contract import Trainer

#: Fields that are compared. Times, sizes and figures are the real one's alone.
COMPARED = ("epoch", "version", "sealed")


class RealRank:
    """A session that a test drives."""

    def __init__(self, arena: Any = None) -> None:
        self.job, self.trainer = OneRank(arena), Trainer()
        self.session = self.job.session
        self.session.attach(self.trainer)

    def start(self) -> None:
        self.session.start_training()

    def iterate(self, iterations: int) -> None:
        for _ in range(iterations):
            self.trainer.iterate(self.session)

    def step(self) -> None:
        self.trainer.iterate(self.session, seal=False)

    def recover(self) -> None:
        with pytest.raises(FailoverInterrupt) as interrupt:
            self.session.check()
        epoch = interrupt.value.epoch
        del interrupt
        self.session.recover(FailoverInterrupt(epoch))

    def committed(self) -> None:
        while self.job.w < self.session.version:
            time.sleep(0.001)

    def finish(self) -> None:
        self.session.finish()

    def close(self) -> None:
        self.job.close()


class SimJob(OneJob):
    """A worker of the simulator, whose job is not simulated."""

    def __init__(self, arena: Any) -> None:
        super().__init__(arena, interval=1)
        self._newcomer = arena is not None
        options = SimpleNamespace(
            has_local=False, has_constant=False, commit="relaxed", finish_waits=True, again=False, breaks=False
        )  # fmt: skip
        self.ends: list[int] = []
        nothing = lambda *_: None  # noqa: E731
        self.contributions: dict[Any, dict[int, Any]] = {}
        world: Any = SimpleNamespace(
            job=SimpleNamespace(world_size=1),
            options=options, ends=self.ends, settings=FailoverConfig().to_dict(), seed=0,
            contributions=self.contributions,
            collective=self._alone, resumed=nothing, runs=nothing, copied=nothing, random=random.Random(0),
        )  # fmt: skip
        process: Any = SimpleNamespace(exit=lambda code: True)
        self.page = SimPage()
        self.worker = SimWorker(world, process, self.page)
        self.tell("role", rank=0, newcomer=self._newcomer, epoch=int(self._newcomer))
        if self._newcomer:
            self.decide({"version": -1, "sealed": False})

    def _alone(self, key: Any, rank: int, content: Any, same: bool = True) -> Callable[[], bool]:
        self.contributions.setdefault(key, {})[rank] = content
        return lambda: True

    @property
    def epoch(self) -> int:
        return max(int(self._newcomer), self.page.load("halt_epoch"))

    def make_arena(self, **sizes: int) -> SimArena:
        layout = ArenaLayout(0, **sizes, journal_capacity=4096, chunk_bytes=4096)
        return SimArena(layout, lambda arena, slot: None)

    def tell(self, name: str, arena: Any = None, **fields: Any) -> None:
        self.worker.deliver({"t": name, **fields}, arena)

    def lose(self) -> None:
        epoch = self.epoch + 1
        self.page.store("halt_epoch", epoch)
        self.tell("halt", epoch=epoch)
        self.listen()

    def listen(self) -> None:
        while self.worker.to_agent:
            message = self.worker.to_agent.popleft()
            self.heard(message.pop("t"), **message)

    def go(self, until: Callable[[], bool]) -> None:
        """The worker's threads run until something is so."""
        for _ in range(10_000):
            self.listen()
            if self.worker.rang:
                self.page.store("interval", self.interval)
                self.page.store("w_stamp", self.page.load("committed"))
            if until():
                return
            self.worker.step()
            self.worker.engine_step()
        raise AssertionError(f"the simulated worker gets nowhere; it said {self.said}")


class SimRank:
    """The same, simulated."""

    def __init__(self, arena: Any = None) -> None:
        self.job = SimJob(arena)

    def _at(self, version: int, sealed: int) -> None:
        fence: Any = self.job.worker.fence
        self.job.go(lambda: (fence.version, fence.sealed) == (version, sealed))

    @property
    def version(self) -> int:
        fence = self.job.worker.fence
        assert fence is not None
        return fence.version

    def start(self) -> None:
        self.job.go(lambda: bool({"training", "resumed"} & set(self.job.said)))

    def iterate(self, iterations: int) -> None:
        for _ in range(iterations):
            self._at(self.version + 1, self.version + 1)

    def step(self) -> None:
        self._at(self.version + 1, self.version)

    def recover(self) -> None:
        times = self.job.said.count("resumed")
        self.job.go(lambda: self.job.said.count("resumed") > times)

    def committed(self) -> None:
        worker = self.job.worker
        self.job.go(lambda: worker.replicator is not None and not worker.replicator.sim.flights)

    def finish(self) -> None:
        self.job.ends.append(self.version)
        self.job.go(lambda: "leaving" in self.job.said)

    def close(self) -> None:
        pass


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(frames, "of_script", lambda: iter(()))  # a test is no script that a newcomer runs again
    made: list[Any] = []

    def begin(kind: type, arena: Any = None) -> Any:
        made.append(kind(arena))
        return made[-1]

    yield begin
    for rank in made:
        rank.close()


def nothing_happens(rank: Any) -> None:
    rank.iterate(3)


def a_death_between_iterations(rank: Any) -> None:
    rank.iterate(2)
    rank.job.lose()
    rank.recover()
    rank.iterate(2)


def a_death_before_the_seal(rank: Any) -> None:
    rank.iterate(2)
    rank.committed()
    rank.step()
    rank.job.lose()
    rank.recover()
    rank.iterate(2)


def a_death_in_the_first_iteration(rank: Any) -> None:
    rank.committed()
    rank.step()
    rank.job.lose()
    rank.recover()
    rank.iterate(1)


def two_deaths_at_once(rank: Any) -> None:
    rank.iterate(1)
    rank.job.lose()
    rank.job.lose()
    rank.recover()
    rank.iterate(1)


def one_death_after_another(rank: Any) -> None:
    for _ in range(3):
        rank.iterate(1)
        rank.job.lose()
        rank.recover()
    rank.iterate(1)


def a_damaged_slot(rank: Any) -> None:
    rank.iterate(2)
    rank.committed()
    (newest,) = (slot for slot, info in enumerate(rank.job.arena.slot_infos()) if info.version == 2)
    rank.job.arena.corrupt(newest, 0)
    rank.job.live_counts = False
    rank.job.lose()
    rank.recover()
    rank.iterate(3)
    assert "bad_slot" in rank.job.said


STORIES = [
    nothing_happens, a_death_between_iterations, a_death_before_the_seal, a_death_in_the_first_iteration,
    two_deaths_at_once, one_death_after_another, a_damaged_slot,
]  # fmt: skip


def told(job: OneJob) -> list[tuple[Any, ...]]:
    """booted comes from whoever makes the session, cost from measurements."""
    return [
        (message["t"], *(message[name] for name in COMPARED if name in message))
        for message in job.messages
        if message["t"] not in ("booted", "cost")
    ]


def assert_alike(ranks: list[Any], story: Callable[[Any], None]) -> None:
    """ranks: the real one, then the simulated."""
    for rank in ranks:
        rank.start()
        story(rank)
        rank.finish()
    real, simulated = (told(rank.job) for rank in ranks)
    assert len(real) > 3 and simulated == real


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_it_says_what_a_real_one_says(make: Callable[..., Any], story: Callable[[Any], None]) -> None:
    assert_alike([make(RealRank), make(SimRank)], story)


def test_a_newcomer(make: Callable[..., Any]) -> None:
    ranks = []
    for kind in (RealRank, SimRank):
        dead = make(kind)
        dead.start()
        dead.iterate(3)
        dead.committed()
        ranks.append(make(kind, dead.job.arena))
    assert_alike(ranks, a_death_between_iterations)
