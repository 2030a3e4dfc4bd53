"""A deputy's view: who has joined it, who is proven dead, and whether its controller may take over.

No sockets and no clock: `deputy.py` has them. The rules are in docs/protocol.md, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ff_core.controller.membership import Node
from ff_core.controller.quorum import Places, is_majority
from ff_core.controller.record import Record


@dataclass(frozen=True, slots=True)
class Joined:
    """An agent that has lost its controller, and what it says of its node.

    term: with which it joins; higher than all that it knows.  number, record: of the newest record that it has.
    heard: the controller has answered it within heartbeat_timeout_s.  silent: nodes that did not answer it.
    epoch: of its slots.  halt_epoch: announced, -1: none.
    verdict: old epoch, epoch and version of the newest one that it has carried out.
    ranks: [rank, uid, epoch of its role, whether it has restored].  spares: uid -> ready.
    """

    node: Node
    term: int
    number: int
    record: Record
    heard: bool
    silent: list[int]
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
            heard=said["heard"],
            silent=list(said["silent"]),
            epoch=said["epoch"],
            halt_epoch=said["halt_epoch"],
            verdict=(old_epoch, epoch, version),
            ranks=[list(entry) for entry in said["ranks"]],
            spares=dict(said["spares"]),
        )


class Election:
    """Of one deputy, once. joined: by node, with one term.  dead: proven so."""

    def __init__(self) -> None:
        self.joined: dict[int, Joined] = {}
        self.dead: set[int] = set()
        self.term = 0

    def join(self, joined: Joined) -> str:
        """Take `joined` in. Returns why not; empty if it is in. If its term is too low it may ask again with `term`;
        if it is higher than before, so must those of `outdated()`."""
        if joined.node.id in self.joined:
            return f"node {joined.node.id} has joined already"
        if joined.term < self.term:
            return f"term {joined.term} is over"
        self.term = joined.term
        self.joined[joined.node.id] = joined
        return ""

    def outdated(self) -> list[int]:
        """Nodes that have joined with a lower term."""
        return sorted(node for node, joined in self.joined.items() if joined.term < self.term)

    def leave(self, node: int) -> None:
        """Its stream has ended."""
        self.joined.pop(node, None)

    @property
    def _newest(self) -> Joined:
        return max(self.joined.values(), key=lambda one: one.number)

    @property
    def record(self) -> Record:
        """The newest one among those who have joined, of whom there is one at least."""
        return self._newest.record

    def _counting(self) -> list[Places]:
        return [self.record.places, *self.record.elders]

    def missing(self) -> dict[int, tuple[str, int]]:
        """Nodes that have not joined and may live: node -> where its launcher would listen."""
        if not self.joined:
            return {}
        return {
            node: (place[0], place[1])
            for places in self._counting()
            for node, place in places.items()
            if node not in self.joined and node not in self.dead
        }

    def silent(self) -> set[int]:
        """Nodes that answer nobody of those who have joined."""
        return set.intersection(*({*one.silent} for one in self.joined.values())) if self.joined else set()

    def outsiders(self) -> list[int]:
        """Nodes that have joined and are not in the newest record: they were given up."""
        return sorted(self.joined.keys() - self.record.places.keys()) if self.joined else []

    def is_complete(self) -> bool:
        """All are here or proven dead, so nobody else can take over."""
        return bool(self.joined) and not self.outdated() and self._newest.heard and not self.missing()

    def has_majority(self) -> bool:
        """More than half are here, whatever the others do: no controller has half, and nobody else more."""
        return (
            bool(self.joined)
            and not self.outdated()
            and all(is_majority(places, self.joined) for places in self._counting())
        )
