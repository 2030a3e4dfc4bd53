"""Where the term of a controller is: in epochs, and in numbers of records; and whether there can be a next one without
the present one's consent (docs/protocol.md, section 8)."""

from __future__ import annotations

from collections.abc import Sized

#: Epochs of one term. No controller begins so many while it cannot be heard.
EPOCHS_A_TERM = 1024
#: Numbers of records: what is above these bits is the term.
TERM_BITS = 32


def can_elect(places: Sized) -> bool:
    """Whether all but one of `places` would be a majority."""
    return len(places) > 2
