"""Long lists in messages."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 3


def some_of(items: Sequence[str], *, between: str = ", ", more: str = "more", most: int = _MOST) -> str:
    """The first `most`, and how many more: "a, b, c and 2 more". between: them.  more: "more tensors", ..."""
    first = between.join(items[:most])
    rest = len(items) - most
    if rest <= 0:
        return first
    return f"{first}{'' if between == ', ' else between.rstrip()} and {rest} {more}"
