"""Connections to holders that break although nobody died."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ff_core.config.schema import FailoverConfig
from ff_core.contract.adapter import Held, TensorSpec
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.copy.binding import CopyCancelled
from ff_core.copy.connect import Connection
from ff_core.copy.page import StatusPage
from ff_core.copy.transports import StreamChoice
from ff_core.copy.writer import Writer
from ff_core.errors import CorruptSlotError, EngineError, FailoverInterrupt
from ff_core.state.razor import make_plan
from ff_core.worker import replicator as replicator_module
from ff_core.worker.engine import CopyEngine
from ff_core.worker.fence import Fence
from ff_core.worker.replicator import Replicator


def now(action: Callable[[], None]) -> None:
    action()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Replicator, list[OSError]]]:
    """A replicator whose holder lets itself be reached, but for the errors in the list, which come first."""
    refusals: list[OSError] = []

    def connect(*arguments: Any) -> Connection:
        if refusals:
            raise refusals.pop(0)
        return Connection([socket.socket()], "tcp")

    monkeypatch.setattr(replicator_module, "connect", connect)
    plan = make_plan([TensorSpec("w", torch.ones(1024), Held.UNIQUE)])
    arena = Arena.create(ArenaLayout(3, plan.sent_bytes, plan.local_bytes, 4096, 4096, 4096))
    monkeypatch.setattr(Writer, "add_holder", lambda self, fds, transport, fewer: os.close(*fds))
    parts: Any = SimpleNamespace(page=StatusPage.create(), notify_fd=-1)
    engine = CopyEngine(arena, parts, FailoverConfig())
    replicator = Replicator(0, plan, engine, parts.page, b"secret", FailoverConfig(), StreamChoice())
    yield replicator, refusals
    replicator.close()
    arena.close()


def break_once(replicator: Replicator, monkeypatch: pytest.MonkeyPatch, looks: int = 1) -> None:
    """Version 1 is on its way to a holder. The engine reports a broken connection, and after the cancel that follows
    nothing any more. looks: how often it reports it, if there is no cancel at once."""
    replicator.connect([[1, "holder", 1]], 0)
    replicator.begin(1)
    errors = [EngineError("reset by peer")] * looks

    def check() -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(replicator._writer, "check", check)


def test_a_connection_that_cannot_be_made_again_at_once_is_tried_again(
    made: tuple[Replicator, list[OSError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicator, refusals = made
    break_once(replicator, monkeypatch)
    again: list[int] = []
    monkeypatch.setattr(replicator, "recommit", again.append)
    refusals += [ConnectionRefusedError(), ConnectionRefusedError()]
    assert [replicator.mend(1, now) for _ in range(2)] == ["", ""] and again == []
    assert "made again" in replicator.mend(1, now) and again == [1]
    assert replicator.mend(1, now) == "" and again == [1]


def test_nothing_is_copied_after_a_halt(
    made: tuple[Replicator, list[OSError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicator, _ = made
    break_once(replicator, monkeypatch)
    fence = Fence(StatusPage.create(), 0)
    fence.halt(1, lambda: None)
    monkeypatch.setattr(replicator, "recommit", lambda version: pytest.fail("copied after a halt"))
    with pytest.raises(FailoverInterrupt):
        replicator.mend(1, fence.unless_halted)


def test_a_cancel_meanwhile_reaches_the_gate(
    made: tuple[Replicator, list[OSError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicator, _ = made
    break_once(replicator, monkeypatch)

    def cancelled(version: int) -> None:
        raise CopyCancelled("a cancel is under way")

    monkeypatch.setattr(replicator, "recommit", cancelled)
    with pytest.raises(CopyCancelled):  # the gate looks for the halt behind it
        replicator.mend(1, now)


def test_a_version_that_the_tensors_have_left_behind_is_waited_for_in_its_slot(
    made: tuple[Replicator, list[OSError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicator, _ = made
    break_once(replicator, monkeypatch, looks=2)
    again: list[int] = []
    monkeypatch.setattr(replicator, "recommit", again.append)
    assert replicator.mend(3, now) == "" and again == []  # it is not sealed: its slot is not complete
    replicator.seal(1, b"scalars")
    while not replicator._is_in_slot():
        time.sleep(0.001)
    assert "made again" in replicator.mend(3, now) and again == [1]


def test_a_damaged_version_that_the_tensors_have_left_behind_is_an_error(
    made: tuple[Replicator, list[OSError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicator, _ = made
    break_once(replicator, monkeypatch)

    def check() -> None:
        raise CorruptSlotError("chunk 3")

    monkeypatch.setattr(replicator._writer, "check", check)
    monkeypatch.setattr(replicator, "recommit", lambda version: pytest.fail("another version was copied in its name"))
    with pytest.raises(EngineError, match=r"version 1, .* damaged .*chunk 3.* tensors are at version 3 already"):
        replicator.mend(3, now)
