"""A deputy's view: who has joined it, who is proven dead, and whether its controller may take over.

No sockets and no clock: `deputy.py` has them. The rules are in docs/protocol.md, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ff_core.controller.membership import Node
from ff_core.controller.record import Record


@dataclass(frozen=True, slots=True)
class Joined:
    """An agent that has lost its controller, and what it says of its node.

    term: how often it has lost a controller.  number, record: of the newest record that it has.
    epoch: of its slots.  halt_epoch: announced, -1: none.
    verdict: old epoch, epoch and version of the newest one that it has carried out.
    ranks: [rank, uid, epoch of its role, whether it has restored].  spares: uid -> ready.
    """

    node: Node
    term: int
    number: int
    record: Record
    epoch: int
    halt_epoch: int
    verdict: tuple[int, int, int]
    ranks: list[list[Any]]
    spares: dict[str, bool]

    @classmethod
    def of(cls, node: Node, said: dict[str, Any]) -> Joined:
        """said: what the agent's allegiance reports. Raises KeyError, TypeError or ValueError if it is no such."""
        old_epoch, epoch, version = said["verdict"]
        return cls(
            node=node,
            term=said["term"],
            number=said["number"],
            record=Record.from_wire(said["record"]),
            epoch=said["epoch"],
            halt_epoch=said["halt_epoch"],
            verdict=(old_epoch, epoch, version),
            ranks=[list(entry) for entry in said["ranks"]],
            spares=dict(said["spares"]),
        )


class Election:
    """Of one deputy, once. joined: by node.  dead: proven so."""

    def __init__(self) -> None:
        self.joined: dict[int, Joined] = {}
        self.dead: set[int] = set()

    def join(self, joined: Joined) -> str:
        """Take `joined` in. Returns why not; empty if it is in."""
        if joined.node.id in self.joined:
            return f"node {joined.node.id} has joined already"
        self.joined[joined.node.id] = joined
        return ""

    def leave(self, node: int) -> None:
        """Its stream has ended."""
        self.joined.pop(node, None)

    @property
    def record(self) -> Record:
        """The newest one among those who have joined, of whom there is one at least."""
        return max(self.joined.values(), key=lambda one: one.number).record

    def missing(self) -> dict[int, tuple[str, int]]:
        """Nodes that have not joined and may live: node -> where its launcher would listen."""
        if not self.joined:
            return {}
        return {
            node: (place[0], place[1])
            for node, place in self.record.places.items()
            if node not in self.joined and node not in self.dead
        }

    def outsiders(self) -> list[int]:
        """Nodes that have joined and are not in the newest record: they were given up."""
        return sorted(self.joined.keys() - self.record.places.keys()) if self.joined else []

    def is_complete(self) -> bool:
        """All are here or proven dead, so nobody else can take over."""
        return bool(self.joined) and not self.missing()
