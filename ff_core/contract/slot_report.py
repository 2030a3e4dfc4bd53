"""What an agent says of each complete slot that it owns, when the controller asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SlotReport:
    """One complete slot that a live agent owns. full: all of its own arena's payload is there."""

    rank: int
    node: int
    kind: Literal["own", "replica"]
    epoch: int
    version: int
    full: bool
