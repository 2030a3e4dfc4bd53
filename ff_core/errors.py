"""Every exception of ff_core. Users meet `FailoverError` subclasses; scripts never catch `FailoverInterrupt`.

An exception that is being handled keeps its traceback alive, the traceback keeps frames alive, and the frames keep the
halted groups, handles and activations alive. So nobody recovers, or waits for a verdict, inside an `except`:
`interrupted` and `judged` leave it first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class FailoverError(Exception):
    """Base of all errors that ff_core raises at users."""


class ConfigError(FailoverError, ValueError):
    """A configuration value is wrong; the message names field, value and what is allowed."""


class UnsupportedError(FailoverError):
    """The job uses something ff_core cannot protect; the message says what would work instead."""


class ProtocolError(FailoverError):
    """A peer sent something it must not send: wrong secret, malformed frame, message out of order."""


class EngineError(FailoverError):
    """The copy engine reported an error; the message carries its context."""


class CorruptSlotError(FailoverError):
    """A slot is incomplete or its checksums do not match its bytes; it was not loaded."""


class JournalMismatch(FailoverError):
    """A newcomer's initialisation asked for something the dead rank's journal does not hold."""


class DifferenceError(FailoverError):
    """What must be the same as before a failure is not, or cannot be known to be: training on could give other results.

    A replacement of the rank would meet the same: the script is restarted, if the job may do that, or the job ends.
    """


class FailoverInterrupt(BaseException):
    """Unwinds the interrupted iteration to the nearest recovery point.

    Derives from BaseException so that a script's `except Exception` or `except RuntimeError` does not swallow it.
    `epoch` is the epoch that the halt announced.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"iteration interrupted: epoch {epoch} begins")
        self.epoch = epoch


def interrupted(call: Callable[[], T]) -> tuple[T | None, int | None]:
    """Makes `call`: (its result, None), or (None, the epoch that interrupted it). Other exceptions go up."""
    try:
        return call(), None
    except FailoverInterrupt as caught:
        epoch = caught.epoch
    return None, epoch


def judged(call: Callable[[], T], judge: Callable[[Exception], None]) -> T:
    """Makes `call`. Its error goes to `judge`, which raises what it means. If `judge` returns, the error goes up."""
    try:
        return call()
    except Exception as error:
        failure = error
    try:
        judge(failure)
        raise failure
    finally:
        del failure  # it refers to this frame: together they would keep all callers' frames alive
