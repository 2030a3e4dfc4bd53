"""What adapters' hooks share: one protection in a process, and the framework's own code without one."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.errors import UnsupportedError
from ff_core.worker import session
from ff_core.worker.guard import Guard


class Protection:
    pass


class Engine:
    def run(self, word: str) -> str:
        return f"own {word}"


@pytest.fixture
def guard() -> Guard[Protection]:
    return Guard(logging.getLogger("guard"), asked="it is on", unasked="it is off", second="one only")


@pytest.fixture
def launched() -> Iterator[Any]:
    """`fftrain run` started this process."""
    mine: Any = SimpleNamespace()
    session.set_current(mine)
    yield mine
    session.set_current(None)


def hook(found: Protection, original: Any, *args: Any) -> tuple[Protection, Any]:
    return found, original(*args)


def test_without_fftrain_it_is_said_once(guard: Guard[Protection], caplog: pytest.LogCaptureFixture) -> None:
    assert guard.session() is None and guard.session() is None
    guard.not_asked()
    (said,) = caplog.messages
    assert said.startswith("THIS JOB IS NOT PROTECTED: it is on, but the job was not started by `fftrain run`.")


def test_a_job_that_did_not_ask(guard: Guard[Protection], launched: Any, caplog: pytest.LogCaptureFixture) -> None:
    guard.not_asked()
    assert caplog.messages == ["it is off"] and guard.current() is None


def test_one_in_a_process(guard: Guard[Protection], launched: Any) -> None:
    engine, other, protection = Engine(), Engine(), Protection()
    assert guard.session() is launched
    guard.hold(protection, by=engine)
    assert guard.current() is guard.of(engine) is protection and guard.of(other) is None
    with pytest.raises(UnsupportedError, match="one only"):
        guard.session()
    del engine, protection
    gc.collect()
    assert guard.current() is None and guard.session() is launched


def test_hooks(guard: Guard[Protection]) -> None:
    engine, other, protection = Engine(), Engine(), Protection()
    anywhere, of_one = guard.guarded(hook), guard.guarded_method(hook)
    assert anywhere(engine.run, "word") == of_one(Engine.run, engine, "word") == "own word"
    guard.hold(protection, by=engine)
    assert anywhere(other.run, "word") == (protection, "own word")
    assert of_one(Engine.run, engine, "word") == (protection, "own word")
    assert of_one(Engine.run, other, "word") == "own word"
