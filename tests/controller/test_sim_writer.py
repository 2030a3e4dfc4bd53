"""The simulator's copy engine does with versions and slots what the real one does: the same tests for both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ff_core.contract.stamps import stamp
from ff_core.copy.arena import ArenaLayout, SlotState
from ff_core.errors import EngineError
from tests.controller.sim_memory import SimArena, SimWriter, Violation
from tests.copy.rig import Rig, eventually

EPOCH = 2
REFUSED = (EngineError, Violation)


class Engine(ABC):
    """A writer without holders, and the arena that it writes to."""

    writer: Any
    arena: Any

    @abstractmethod
    def seal(self, version: int) -> None:
        """With some scalars."""

    @abstractmethod
    def copy(self, version: int) -> None:
        """The engine copies `version`, and does what else it can."""

    @abstractmethod
    def committed(self) -> int:
        """The newest stamp, 0: none."""

    def begin(self, slot: int, version: int, epoch: int = EPOCH) -> None:
        self.writer.begin(slot, epoch, version, 0)

    def state(self, slot: int) -> SlotState:
        state: SlotState = self.arena.slot_infos()[slot].state
        return state

    def commits(self, version: int, epoch: int = EPOCH) -> None:
        """It is committed in the end."""
        self.copy(version)
        eventually(lambda: self.committed() == stamp(epoch, version), "the commit")

    @abstractmethod
    def close(self) -> None: ...


class RealEngine(Engine):
    def __init__(self) -> None:
        self._rig = Rig(holders=0)
        self.writer, self.arena = self._rig.writer, self._rig.own

    def seal(self, version: int) -> None:
        self.writer.seal(version, b"scalars")

    def copy(self, version: int) -> None:
        self.writer.wait_copied(version, 60)

    def committed(self) -> int:
        return self._rig.page.load("committed")

    def close(self) -> None:
        self._rig.__exit__()


class SimEngine(Engine):
    def __init__(self) -> None:
        self.arena = SimArena(ArenaLayout(3, 100_000, 30_000, 4096, 4096, 8192), lambda arena, slot: None)
        self._committed = 0
        self.writer = SimWriter(self.arena, lambda: ((), ()), self._commit)

    def _commit(self, number: int) -> None:
        self._committed = number

    def seal(self, version: int) -> None:
        self.writer.seal(version, ())

    def copy(self, version: int) -> None:
        while actions := self.writer.actions():
            actions[0]()

    def committed(self) -> int:
        return self._committed

    def close(self) -> None:
        pass


@pytest.fixture(params=[RealEngine, SimEngine])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = request.param()
    yield made
    made.close()


def run(engine: Engine, slot: int, version: int, epoch: int = EPOCH) -> None:
    engine.begin(slot, version, epoch)
    engine.seal(version)
    engine.commits(version, epoch)


def test_a_version_is_committed_when_it_is_copied_and_sealed(engine: Engine) -> None:
    engine.begin(0, 4)
    engine.copy(4)
    assert engine.state(0) is SlotState.WRITING and engine.committed() == 0
    engine.seal(4)
    engine.commits(4)
    assert engine.state(0) is SlotState.COMPLETE
    run(engine, 1, 5)
    assert [info.version for info in engine.arena.slot_infos()] == [4, 5]


@pytest.mark.parametrize(
    "begin",
    [
        lambda engine: engine.begin(1, 5),  # the one before is not sealed
        lambda engine: engine.begin(0, 5),  # its slot is in use, too
        lambda engine: engine.begin(1, 4),
        lambda engine: engine.begin(1, 9, EPOCH - 1),
    ],
    ids=["unsealed", "slot in flight", "the same again", "an older epoch"],
)
def test_what_may_not_begin(engine: Engine, begin: Callable[[Engine], None]) -> None:
    engine.begin(0, 4)
    with pytest.raises(REFUSED):
        begin(engine)
    engine.seal(4)
    engine.commits(4)
    assert engine.state(1) is SlotState.EMPTY


def test_what_is_older_than_what_was_committed_may_not_begin(engine: Engine) -> None:
    run(engine, 0, 4)
    with pytest.raises(REFUSED):
        engine.begin(1, 3)
    run(engine, 1, 3, EPOCH + 1)


def test_a_cancel_leaves_what_was_complete(engine: Engine) -> None:
    run(engine, 0, 4)
    engine.begin(1, 5)
    engine.writer.cancel()
    assert (engine.state(0), engine.state(1)) == (SlotState.COMPLETE, SlotState.WRITING)
    assert engine.committed() == stamp(EPOCH, 4)
    run(engine, 1, 5, EPOCH + 1)
    assert engine.state(1) is SlotState.COMPLETE


def test_a_slot_is_sent_again_as_what_it_was_stamped(engine: Engine) -> None:
    run(engine, 0, 4)
    engine.arena.restamp(0, EPOCH + 1)
    engine.writer.cancel()
    engine.writer.resend(0, EPOCH + 1, 4)
    engine.commits(4, EPOCH + 1)
    assert engine.state(0) is SlotState.COMPLETE
