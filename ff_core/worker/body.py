"""The body of an exact loop: what must happen once per iteration, and is voided by a failure.

    for item in <an adapter's loop>:
        with Iteration(loop):        # an adapter's iteration()
            ...

A failure anywhere inside the `with` ends it early, without an exception. The loop then goes back to the iteration that
follows the version that all ranks agreed on.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from ff_core.errors import FailoverInterrupt


class Body:
    """One run of the loop's body: (a part of) iteration `version` + 1. item: its number in the loop.

    kept: what the adapter wants back if the body is void.
    """

    def __init__(self, version: int, item: int, kept: Any = None) -> None:
        self.version = version
        self.item = item
        self.kept = kept
        self.entered = False
        self.finished = False
        self.interrupt: int | None = None  # the epoch that a halt announced


class Bodies(Protocol):
    """The loop."""

    def enter(self) -> Body:
        """The body that runs now is entered. Raises FailoverError if there is none, or it was entered before."""

    def void(self, body: Body, epoch: int) -> None:
        """The body was interrupted: the loop's other code must not see what did not count."""

    def halted(self, body: Body) -> int | None:
        """The epoch of a halt that the body has not heard of, or has swallowed; None if there is none."""


class Iteration:
    """The context of one body."""

    def __init__(self, loop: Bodies) -> None:
        self._loop = loop
        self._body: Body | None = None

    def __enter__(self) -> None:
        self._body = self._loop.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self._body is not None
        epoch = _interrupted(error)
        if epoch is None and (error is None or isinstance(error, Exception)):
            epoch = self._loop.halted(self._body)
        if epoch is not None:
            self._loop.void(self._body, epoch)
        self._body.finished = error is None or epoch is not None
        return epoch is not None


def _interrupted(error: BaseException | None) -> int | None:
    """The epoch of the interrupt that `error` is, or was raised during (by a `finally` of the script)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, FailoverInterrupt):
            return error.epoch
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
