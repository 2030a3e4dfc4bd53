"""What the exact loops of all adapters have in common: bodies that a failure voids, and counts around their items.

    for item in <an adapter's loop>:
        with Iteration(loop):        # an adapter's iteration()
            ...

A failure anywhere inside the `with` ends it early, without an exception. The loop then goes back to the iteration that
follows the version that all ranks agreed on.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ff_core.errors import FailoverError, FailoverInterrupt, interrupted
from ff_core.state import counting
from ff_core.worker.items import Items

if TYPE_CHECKING:
    from ff_core.worker.interface import AdapterSession

T = TypeVar("T")


class Body:
    """One run of the loop's body: (a part of) iteration `version` + 1.

    item: its number in the loop.  number: as the user counts.  kept: what the adapter wants back if it is void.
    """

    def __init__(self, version: int, item: int, number: int, kept: Any = None) -> None:
        self.version = version
        self.item = item
        self.number = number
        self.kept = kept
        self.entered = False
        self.finished = False
        self.interrupt: int | None = None  # the epoch that a halt announced


@dataclass(frozen=True)
class Words:
    """What the user reads, with what to do instead. nested: a loop inside a loop.  alone: a body without its loop.
    swallowed: an interrupt, of iteration %d.  enumerated: by a {what} that cannot count back."""

    nested: str
    alone: str
    swallowed: str
    enumerated: str


class ExactLoop(ABC, Generic[T]):
    """All loops of one protected training. log: the adapter's."""

    def __init__(self, session: AdapterSession, words: Words, log: Logger) -> None:
        self.session = session
        self._words, self._log = words, log
        self._body: Body | None = None
        self._left = False  # the newest version is the last of a loop that was left before its end
        self._items: weakref.ReferenceType[Items[T]] | Callable[[], None] = lambda: None  # that are asked now

    @abstractmethod
    def fail(self, error: FailoverError) -> FailoverError:
        """This rank cannot go on. Remembers `error`, so that it cannot be lost; returns it to be raised."""

    @abstractmethod
    def _end(self, body: Body) -> int | None:
        """The body is over: seal. Returns the epoch of a halt, if there was one."""

    def void(self, body: Body, epoch: int) -> None:
        """The body was interrupted: the loop's other code must not see what did not count."""
        body.interrupt = epoch

    def enter(self) -> Body:
        """The body that runs now is entered. Raises FailoverError if there is none, or it was entered before."""
        body = self._body
        if body is None or body.entered:
            raise FailoverError(self._words.alone)
        body.entered = True
        return body

    def halted(self, body: Body) -> int | None:
        """The epoch of a halt that the body has not heard of, or has swallowed; None if there is none."""
        _, epoch = interrupted(self.session.check)
        if epoch is not None and self.session.version == body.version:
            self._log.warning(self._words.swallowed, body.number)
        return epoch

    def _leave(self, body: Body) -> None:
        """The script left the loop by `break`, `return` or an exception; a regular end only after a whole body."""
        if not body.finished:
            return
        self._left = True
        epoch = self._end(body)
        if epoch is None:
            _, epoch = interrupted(self.session.finish)
        if epoch is not None:
            self.session.left(body.version + 1)

    def _left_at(self) -> int:
        """For a version's place: that version, if the loop was left with it before its end; else -1."""
        return self.session.version if self._left else -1

    def _not_left(self, place: dict[str, Any]) -> None:
        """Does not return if the loop had been left at `place`, see AdapterSession.left()."""
        if place["left"] >= 0:
            self.session.left(place["left"], begins=True)

    def _asked(self, items: weakref.ReferenceType[Items[T]]) -> None:
        """A loop begins, and asks for `items`. Raises FailoverError within another loop's body."""
        self._items = items
        if self._body is not None and self._body.entered and not self._body.finished:
            raise FailoverError(self._words.nested)

    def _count(self, by: int) -> None:
        """So many items count, more or less, for an enumerate() that asks for them."""
        items = self._items()
        if items is not None:
            try:
                items.count(by)
            except counting.Unmovable as error:
                raise self.fail(FailoverError(self._words.enumerated.format(what=error))) from None


class Iteration:
    """The context of one body."""

    def __init__(self, loop: ExactLoop[Any]) -> None:
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
