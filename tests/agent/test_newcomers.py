"""When a process that takes a rank's place gets its role."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.agent.newcomers import Newcomers


class Node:
    """Rank 1 is dying, and `spare` is going to play it. given: (process, rank, epoch)."""

    def __init__(self) -> None:
        self.dead, self.spare = self._process(1), self._process(1)
        self.given = list[tuple[Any, int, int]]()
        workers = SimpleNamespace(ranks=lambda: [self.dead, self.spare], give_role=self._give_role)
        store = SimpleNamespace(own={1: SimpleNamespace(journal=lambda: b"journal")})
        self.newcomers = Newcomers(SimpleNamespace(workers=workers, store=store))  # type: ignore[arg-type]

    @staticmethod
    def _process(rank: int) -> Any:
        return SimpleNamespace(rank=rank, gone=False, stuck=False)

    def _give_role(self, worker: Any, rank: int, *, epoch: int, **_: Any) -> None:
        self.given.append((worker, rank, epoch))

    def assign(self, after_exit: bool) -> None:
        self.newcomers.assigned(1, self.spare, epoch=3, injections=[], after_exit=after_exit)
        self.newcomers.look()


@pytest.fixture
def node() -> Node:
    return Node()


def test_at_once_where_nothing_is_waited_for(node: Node) -> None:
    node.assign(after_exit=False)
    assert node.given == [(node.spare, 1, 3)]


@pytest.mark.parametrize("end", ["gone", "stuck"])
def test_after_the_end_of_whom_it_replaces(node: Node, end: str) -> None:
    node.assign(after_exit=True)
    assert node.given == []
    setattr(node.dead, end, True)
    node.newcomers.look()
    node.newcomers.look()
    assert node.given == [(node.spare, 1, 3)]


def test_at_once_if_its_device_has_room(node: Node) -> None:
    node.assign(after_exit=True)
    node.newcomers.has_room(node.spare)
    assert node.given == [(node.spare, 1, 3)]


def test_room_is_nothing_for_who_has_its_role_already(node: Node) -> None:
    node.assign(after_exit=False)
    node.newcomers.has_room(node.spare)
    assert len(node.given) == 1
    node.assign(after_exit=True)  # another failover: what was said belongs to the first one
    assert len(node.given) == 1
