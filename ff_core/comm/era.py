"""`Era`: what is true of all groups of a process now. Groups, handles, waits and stores ask it, and nothing else.

An era ends with a halt and a new one begins with a regroup. The registry of groups is the one that knows; tests stand
in for it with a few lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ff_core.errors import FailoverInterrupt

    from .cut import Cut
    from .host import CommHost


class Era(Protocol):
    """Every member may be used from any thread."""

    @property
    def host(self) -> CommHost:
        """The process around the groups."""

    @property
    def cut(self) -> Cut:
        """Whether the connections are cut, and what is lost with them."""

    @property
    def solo(self) -> bool:
        """Whether this process initialises alone: its groups are connected to nobody."""

    @property
    def over(self) -> bool:
        """Whether a halt has ended the era. A solo process goes on: nothing it does depends on the others."""

    @property
    def noted(self) -> BaseException | None:
        """The error of an operation that only C++ waits for, until it is known what it means."""

    def epoch(self) -> int:
        """The epoch that new groups and store connections belong to."""

    def interrupt(self) -> FailoverInterrupt:
        """The exception for whoever used something of an older generation. To be raised by the caller."""

    def failed(self, error: BaseException, epoch: int | None) -> None:
        """An operation of a generation of `epoch` raised `error`. Waits a bounded time to learn what it means.

        Raises FailoverInterrupt if it belongs to a failover. Call it outside of `except` (`ff_core.errors.judged`).
        """

    def note_failure(self, error: BaseException) -> None:
        """An operation that only C++ waits for has failed; its error will surface elsewhere, as a RuntimeError."""
