"""Where an unmodified script is when it asks its loader for a batch, and whether a replacement comes to that place.

fail: of the protected engine; what it returns is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import around, frames
from ff_deepspeed import words

if TYPE_CHECKING:
    from ff_deepspeed.feed import Feed
    from ff_deepspeed.tracked import Tracked

AT_LOADER, AT_FORWARD = "loader", "forward"
Fail = Callable[[FailoverError], FailoverError]


def taken(feed: Feed, asked: Tracked | None) -> list[around.Place]:
    """Of a script that asks `asked`. One that has fetched ahead is further than the version."""
    return [] if asked is None or feed.runs_ahead else around.places()


def go_to(data: dict[str, Any]) -> None:
    """In a replacement. data: what is saved with the version."""
    around.go_to(data["around"])


def check_forward(data: dict[str, Any], fail: Fail) -> None:
    """The replacement trains, and has not asked for the batch that followed the version. Raises FailoverError if the
    dead rank had asked its loader for it."""
    if data["joined_at"] == AT_LOADER:
        raise fail(FailoverError(words.ANOTHER_PLACE.format(what=words.ANOTHER_LOADER)))


def check_loader(feed: Feed, fail: Fail) -> None:
    """Training has begun. Raises UnsupportedError if its batches are kept where nobody can put them back."""
    if feed.is_cycled:
        raise fail(UnsupportedError(words.CYCLED.format(line=frames.line())))
