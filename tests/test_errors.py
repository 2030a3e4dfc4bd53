"""Leaving an `except` before going on: nothing of the interrupted call is alive then."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from ff_core.errors import FailoverInterrupt, interrupted, judged


class Local:
    """Something that lives in a frame only."""


def test_interrupted_gives_the_result_or_the_epoch() -> None:
    alive: list[weakref.ref[Local]] = []

    def hang() -> str:
        local = Local()
        alive.append(weakref.ref(local))
        raise FailoverInterrupt(7)

    gc.disable()
    try:
        assert interrupted(lambda: "done") == ("done", None)
        assert interrupted(hang) == (None, 7)
        assert sys.exception() is None if hasattr(sys, "exception") else sys.exc_info() == (None, None, None)
        assert alive[0]() is None
    finally:
        gc.enable()
    with pytest.raises(KeyError):
        interrupted(lambda: {}["other errors go up"])


def test_judged_replaces_an_error_or_lets_it_go_up() -> None:
    seen: list[Exception] = []

    def fail() -> None:
        raise RuntimeError("connection closed")

    def judge(error: Exception) -> None:
        assert sys.exc_info() == (None, None, None), "the `except` has been left"
        seen.append(error)
        if len(seen) == 2:
            raise FailoverInterrupt(3)

    assert judged(lambda: 5, judge) == 5
    with pytest.raises(RuntimeError, match="connection closed"):
        judged(fail, judge)
    with pytest.raises(FailoverInterrupt) as caught:
        judged(fail, judge)
    assert len(seen) == 2
    assert caught.value.__context__ is None, "it must not hang on to the call that failed"
