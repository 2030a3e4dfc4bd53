"""Every exception of ff_core. Users meet `FailoverError` subclasses; scripts never catch `FailoverInterrupt`."""

from __future__ import annotations


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


class UnrecoverableError(FailoverError):
    """No version exists that every rank can supply."""


class FailoverInterrupt(BaseException):
    """Unwinds the interrupted iteration to the nearest recovery point.

    Derives from BaseException so that a script's `except Exception` or `except RuntimeError` does not swallow it.
    `epoch` is the epoch that the halt announced.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"iteration interrupted: epoch {epoch} begins")
        self.epoch = epoch
